"""``dynamo reload``."""

from __future__ import annotations

from typing import Any

import click
import msgspec

from dynamo_core.cli.options import config_option, json_option, setting_options

__all__ = ["command"]

_WITHIN = 60.0


@click.command("reload")
@setting_options("reload", only=("http_port",))
@config_option
@json_option
def command(config: str | None, as_json: bool, **flags: Any) -> int:
    """Have a running serve read its configuration again.

    Frontends get plugins, their tables and the log level as file and environment say, without losing a request; a configuration
    that cannot be right changes nothing. The server is found by itself; with several running, --http-port says which.
    """
    import asyncio

    from dynamo_core.cli.status import choose_run
    from dynamo_core.config import resolve
    from dynamo_core.supervisor.admin import ask_admin
    from dynamo_core.supervisor.run_state import find_runs
    from dynamo_core.supervisor.status import ReloadReport

    resolved = resolve(flags, file=config)
    run = choose_run(find_runs(resolved.settings.run_dir), resolved)
    answer = asyncio.run(ask_admin(run.admin, "reload", within=_WITHIN))
    report = msgspec.convert(answer, ReloadReport)
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(answer)))
    else:
        if report.reloaded:
            click.echo(f"reloaded {', '.join(report.reloaded)}: plugins {', '.join(report.plugins)}")
        for name, why in report.refused.items():
            click.echo(f"{name} was not reloaded, what was active stays: {why}", err=True)
    return 2 if report.refused else 0
