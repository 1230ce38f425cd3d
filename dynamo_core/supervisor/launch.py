"""From settings to a running tree: what ``dynamo serve`` does."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import BinaryIO, TextIO

import msgspec

from dynamo_core import __version__
from dynamo_core.config import Resolved, Settings
from dynamo_core.plugins import Compiled
from dynamo_core.supervisor.admin import ADMIN_SOCKET
from dynamo_core.supervisor.cores import available_cores, available_gpus, split_cores, with_gpus
from dynamo_core.supervisor.log_stream import LogStream
from dynamo_core.supervisor.order import Order, ProcessKind, make_order
from dynamo_core.supervisor.port import PortReservation, reserve_port
from dynamo_core.supervisor.preflight import activate_for, check_serve
from dynamo_core.supervisor.process import ProcessPlan
from dynamo_core.supervisor.progress import make_progress
from dynamo_core.supervisor.reload import order_settings, renewed
from dynamo_core.supervisor.run_state import RunFolder, RunState
from dynamo_core.supervisor.status import RunStatus
from dynamo_core.supervisor.tree import Supervisor

__all__ = ["CHILD_COMMAND", "launch"]

CHILD_COMMAND = (sys.executable, "-m", "dynamo_core.supervisor.child")


def launch(
    resolved: Resolved,
    *,
    environ: Mapping[str, str] = os.environ,
    out: TextIO | None = None,
    log: BinaryIO | None = None,
    child_command: Sequence[str] = CHILD_COMMAND,
) -> int:
    """Run until a signal; returns the exit code. Raises :class:`~dynamo_core.errors.StartupError` when it cannot come up.

    ``out`` gets what is meant for the user, ``log`` the output of all processes and the progress; standard output and error if
    not given. ``child_command`` is followed by the path of an order; tests put a scripted child there.
    """
    told: TextIO = out or sys.stdout
    logged: BinaryIO = log or sys.stderr.buffer
    compiled = check_serve(resolved)
    settings = resolved.settings
    port = reserve_port(settings.http_host, settings.http_port, scheme="https" if settings.tls_cert_path else "http")
    try:
        folder = RunFolder.create(settings.run_dir, environ)
        try:
            _tell(_plugin_line(compiled), told)
            plans = _plans(resolved, folder, port, environ, child_command)
            renew = partial(_renew, resolved, folder)
            colour = logged.isatty() and not environ.get("NO_COLOR")
            return _supervise(plans, folder, port, settings, told, logged, colour=colour, renew=renew)
        finally:
            folder.close()
    finally:
        port.close()


def _supervise(
    plans: Sequence[ProcessPlan],
    folder: RunFolder,
    port: PortReservation,
    settings: Settings,
    out: TextIO,
    log: BinaryIO,
    *,
    colour: bool,
    renew: Callable[[], None],
) -> int:
    progress = make_progress(log, terminal=log.isatty(), jsonl=settings.log_jsonl)
    stream = LogStream(progress.write, colour=colour, jsonl=settings.log_jsonl)
    state = RunState(
        pid=os.getpid(),
        started=time.time(),
        version=__version__,
        http_host=port.host,
        http_port=port.port,
        url=port.url,
        namespace=settings.namespace,
        admin=str(folder.path / ADMIN_SOCKET),
    )

    async def run() -> int:
        supervisor = Supervisor(
            plans,
            folder=folder,
            state=state,
            log=stream,
            progress=progress,
            grace=settings.graceful_shutdown_secs,
            announce=lambda status: _tell(_ready_text(status, settings), out),
            renew=renew,
        )
        return await supervisor.run()

    try:
        return asyncio.run(run())
    finally:
        progress.finish()
        stream.close()


def _plans(
    resolved: Resolved, folder: RunFolder, port: PortReservation, environ: Mapping[str, str], child_command: Sequence[str]
) -> list[ProcessPlan]:
    settings = resolved.settings
    shared: dict[str, object] = {"http_host": port.host, "http_port": port.port, "system_port": -1}  # one port, many workers
    if settings.discovery_backend == "file" and settings.file_kv is None:
        shared["file_kv"] = str(folder.folder("kv"))
    for_children = msgspec.structs.replace(settings, run_dir=str(folder.path), **shared)
    cores = split_cores(available_cores(), settings.workers)
    environs = with_gpus(environ, available_gpus(environ), settings.workers)
    children: list[tuple[ProcessKind, str, tuple[int, ...], Mapping[str, str]]] = [
        *(("worker", f"worker-{index}", cores[index], environs[index]) for index in range(settings.workers)),
        *(("frontend", f"frontend-{index}", (), environ) for index in range(settings.frontends)),
    ]
    plans = []
    for kind, name, own_cores, own_environ in children:
        order = make_order(resolved, kind=kind, name=name, settings=for_children, cpu_cores=own_cores)
        path = folder.write(f"{name}.json", msgspec.json.encode(order))
        command = (*child_command, str(path))
        plans.append(ProcessPlan(name=name, kind=kind, command=command, environ={**own_environ, "PYTHONUNBUFFERED": "1"}))
    return plans


def _renew(resolved: Resolved, folder: RunFolder) -> None:
    """Check the configuration as it is now, and let frontends that start from here on have it."""
    frontends: list[tuple[Path, Order]] = []
    for index in range(resolved.settings.frontends):
        path = folder.path / f"frontend-{index}.json"
        frontends.append((path, renewed(msgspec.json.decode(path.read_bytes(), type=Order))))
    activate_for(order_settings(frontends[0][1]), "serve")
    for path, order in frontends:
        folder.write(path.name, msgspec.json.encode(order))


def _tell(text: str, out: TextIO) -> None:
    with contextlib.suppress(BrokenPipeError):  # who piped us into `head` wants the server all the same
        print(text, file=out, flush=True)


def _plugin_line(compiled: Compiled) -> str:
    names = ", ".join(info.name for info in compiled.plugins)
    return f"plugins: {names} (--plugin adds one, --no-plugin leaves one out)"


def _ready_text(status: RunStatus, settings: Settings) -> str:
    model = status.models[0].name if status.models else settings.model_name or "MODEL"
    body = msgspec.json.encode({"model": model, "prompt": "The capital of France is", "max_tokens": 24}).decode()
    count = len(status.workers)
    everybody = " (on all addresses)" if settings.http_host in ("0.0.0.0", "::") else ""  # noqa: S104 - compared, not bound
    return (
        f"ready: {status.url}/v1{everybody}, model {model}, {count} worker{'' if count == 1 else 's'}\n"
        f"  curl {status.url}/v1/completions -H 'content-type: application/json' -d {shlex.quote(body)}"
    )
