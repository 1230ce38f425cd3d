"""``dynamo sleep``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from dynamo_core.cli.options import config_option, setting_options
from dynamo_core.errors import StartupError

__all__ = ["command", "order_workers"]

_ENGINE_SECONDS = 300.0
"""What an engine gets to free or fetch its memory, beyond the time for running requests."""


@click.command("sleep")
@click.argument("workers", nargs=-1)
@setting_options("sleep", only=("http_port",))
@config_option
def command(workers: Sequence[str], config: str | None, **flags: Any) -> int:
    """Let workers of a running serve rest: WORKERS by name (`dynamo status` shows them), all if none is named.

    A worker leaves the routing, finishes what runs (what takes too long moves to another) and frees what its engine can spare:
    vLLM started with --engine-arg enable_sleep_mode=true its weights and cache, others their cache. `dynamo wake` brings it back.
    """
    return order_workers("sleep", "asleep", workers, config, flags)


def order_workers(order: str, done: str, workers: Sequence[str], config: str | None, flags: dict[str, Any]) -> int:
    """Exit code 2 when one of them did not do it."""
    import asyncio

    from dynamo_core.cli.status import choose_run
    from dynamo_core.config import resolve
    from dynamo_core.supervisor.admin import ask_admin
    from dynamo_core.supervisor.run_state import find_runs

    resolved = resolve(flags, file=config)
    run = choose_run(find_runs(resolved.settings.run_dir), resolved)
    if workers:
        known = [one["name"] for one in asyncio.run(ask_admin(run.admin, "status"))["processes"] if one["kind"] == "worker"]
        if unknown := [name for name in workers if name not in known]:
            raise StartupError(f"There is no worker {', '.join(unknown)}: there are {', '.join(known)}.")
    within = resolved.settings.graceful_shutdown_secs + _ENGINE_SECONDS
    question = {"name": order, "kind": "worker", "within": within, **({"processes": list(workers)} if workers else {})}
    answer = asyncio.run(ask_admin(run.admin, "fan_out", question, within=within + 5))
    for name in answer["answers"]:
        click.echo(f"{name} is {done}")
    for name, why in answer["errors"].items():
        click.echo(f"{name} is not {done}: {why}", err=True)
    return 2 if answer["errors"] else 0
