"""``dynamo status``."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click
import msgspec

from dynamo_core.cli.options import config_option, json_option, setting_options
from dynamo_core.cli.table import table
from dynamo_core.errors import StartupError

if TYPE_CHECKING:
    from dynamo_core.config import Resolved
    from dynamo_core.supervisor.run_state import RunState
    from dynamo_core.supervisor.status import RunStatus

__all__ = ["choose_run", "command"]


@click.command("status")
@setting_options("status", only=("http_port",))
@config_option
@json_option
def command(config: str | None, as_json: bool, **flags: Any) -> None:
    """Show processes, models and workers of a running serve.

    It is found by itself; with several running, --http-port says which.
    """
    import asyncio

    from dynamo_core.config import resolve
    from dynamo_core.supervisor.admin import ask_admin
    from dynamo_core.supervisor.run_state import find_runs
    from dynamo_core.supervisor.status import RunStatus

    resolved = resolve(flags, file=config)
    run = choose_run(find_runs(resolved.settings.run_dir), resolved)
    answer = asyncio.run(ask_admin(run.admin, "status"))
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(answer)))
        return
    click.echo(_text(msgspec.convert(answer, RunStatus)))


def choose_run(runs: list[RunState], resolved: Resolved) -> RunState:
    """The only run, or the one on the port that was asked for. Raises :class:`StartupError`.

    A port from a flag must match; one from the environment or a file, which was meant for `serve`, only chooses among several.
    """
    port = resolved.settings.http_port
    ports = ", ".join(str(run.http_port) for run in runs)
    matching = [run for run in runs if run.http_port == port]
    if not runs:
        raise StartupError("No server is running: start one with `dynamo serve`.")
    if resolved.origins["http_port"].kind == "flag":
        if not matching:
            raise StartupError(f"No server is running on port {port}: there is one on port {ports}.")
        return matching[0]
    if len(runs) == 1:
        return runs[0]
    if matching and resolved.origins["http_port"].kind != "default":
        return matching[0]
    raise StartupError(f"Several servers are running, on ports {ports}: choose one with --http-port.")


def _text(status: RunStatus) -> str:
    head = f"{status.url}, supervisor {status.pid}, up {_duration(time.time() - status.started)}"
    processes = table(
        ("PROCESS", "KIND", "PID", "STATE", "RESTARTS"),
        [(p.name, p.kind, p.pid or "-", p.state, p.restarts) for p in status.processes],
    )
    models = table(("MODEL", "ENGINE", "WORKERS"), [(m.name, m.engine or "-", m.workers) for m in status.models])
    workers = table(
        ("WORKER", "MODEL", "RUNNING", "WAITING", "KV BLOCKS", "IN FLIGHT"),
        [
            (
                w.name or f"{w.id:x}",
                w.model,
                w.load.running,
                w.load.waiting,
                f"{w.load.kv_used_blocks}/{w.load.kv_total_blocks}" if w.load.kv_total_blocks else "-",
                w.inflight,
            )
            for w in status.workers
        ],
    )
    return f"{head}\n\n{processes}\n\n{models}\n\n{workers}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
