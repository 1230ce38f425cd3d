"""``dynamo worker``."""

from __future__ import annotations

import os
from typing import Any

import click

from dynamo_core.cli.options import config_option, setting_options
from dynamo_core.cli.plugin_options import PluginCommand

__all__ = ["command"]


@click.command("worker", cls=PluginCommand)
@setting_options("worker")
@config_option
def command(config: str | None, **flags: Any) -> int:
    """Run one worker in the foreground.

    Frontends of the same namespace and discovery store send it requests."""
    from dynamo_core.config import resolve
    from dynamo_core.supervisor.order import make_order
    from dynamo_core.supervisor.service import run_in_foreground

    return run_in_foreground(
        make_order(resolve(flags, file=config, process="worker"), kind="worker", name=f"worker-{os.getpid()}")
    )
