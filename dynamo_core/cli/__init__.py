"""The ``dynamo`` command. One module a command, imported when it is called for."""

from dynamo_core.cli.entry import main

__all__ = ["main"]
