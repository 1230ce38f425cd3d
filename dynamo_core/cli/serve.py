"""``dynamo serve``."""

from __future__ import annotations

from typing import Any

import click

from dynamo_core.cli.options import config_option, setting_options
from dynamo_core.cli.plugin_options import PluginCommand

__all__ = ["command"]


@click.command("serve", cls=PluginCommand)
@setting_options("serve")
@config_option
def command(config: str | None, **flags: Any) -> int:
    """Start workers and frontends, watch them, and serve one model.

    Ctrl-C lets running requests finish; a second one ends at once.
    """
    from dynamo_core.config import resolve
    from dynamo_core.supervisor.launch import launch

    return launch(resolve(flags, file=config, process="serve"))
