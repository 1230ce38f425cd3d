"""``dynamo wake``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from dynamo_core.cli.options import config_option, setting_options
from dynamo_core.cli.sleep import order_workers

__all__ = ["command"]


@click.command("wake")
@click.argument("workers", nargs=-1)
@setting_options("wake", only=("http_port",))
@config_option
def command(workers: Sequence[str], config: str | None, **flags: Any) -> int:
    """Let workers that rest serve again: WORKERS by name, all if none is named. They are routed to once their engine is ready."""
    return order_workers("wake", "awake", workers, config, flags)
