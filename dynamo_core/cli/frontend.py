"""``dynamo frontend``."""

from __future__ import annotations

import os
from typing import Any

import click

from dynamo_core.cli.options import config_option, setting_options
from dynamo_core.cli.plugin_options import PluginCommand

__all__ = ["command"]


@click.command("frontend", cls=PluginCommand)
@setting_options("frontend")
@config_option
def command(config: str | None, **flags: Any) -> int:
    """Run one frontend in the foreground.

    It finds workers through discovery: in the same namespace, with the same store (`DYN_FILE_KV`, or another backend)."""
    from dynamo_core.config import resolve
    from dynamo_core.supervisor.order import make_order
    from dynamo_core.supervisor.service import run_in_foreground

    return run_in_foreground(
        make_order(resolve(flags, file=config, process="frontend"), kind="frontend", name=f"frontend-{os.getpid()}")
    )
