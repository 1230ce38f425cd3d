"""From ``in=``, ``out=`` and settings to something that runs."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import uvloop

from dynamo_core.config import Resolved, Settings, active_plugin_names, check_selection
from dynamo_core.errors import DynamoError, PluginError, StartupError
from dynamo_core.launcher.engines import choose_engine, find_engines
from dynamo_core.launcher.terminal import converse, note, show
from dynamo_core.launcher.words import Words
from dynamo_core.plugins import Compiled, activate
from dynamo_core.plugins.names import canonical_name
from dynamo_core.runtime import parse_endpoint
from dynamo_core.runtime.logging import configure_dynamo_logging
from dynamo_core.supervisor.order import Order, ProcessKind
from dynamo_core.supervisor.port import listening_socket, reserve_port
from dynamo_core.supervisor.preflight import check_http, check_model
from dynamo_core.supervisor.service import run_in_foreground

if TYPE_CHECKING:
    from dynamo_core.http.frontend import Frontend

__all__ = ["RunOptions", "launch_run"]

_LOCAL = {"discovery_backend": "mem", "request_plane": "inproc", "event_plane": "inproc"}
_KV_ROUTER = "kv-router"
_READY_WITHIN = 30.0


class RunOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What the command line says beside settings."""

    kv_router: Mapping[str, Any] = {}
    """Fields of ``[plugins.kv-router]``."""
    output: str | None = None
    """Of a batch."""
    concurrency: int = 32
    """Of a batch: requests at a time."""
    system: str | None = None
    """Of a chat: its system message."""


def launch_run(words: Words, resolved: Resolved, options: RunOptions) -> int:
    """Run to the end; returns the exit code. Raises :class:`StartupError`."""
    plan = _settle(words, resolved, options)
    settings = plan.settings
    if words.input == "dyn":
        namespace, component, endpoint = parse_endpoint(words.target)
        settings = msgspec.structs.replace(settings, namespace=namespace, component=component)
        return run_in_foreground(_order(plan, settings, "worker", endpoint))
    if words.input == "http" and words.output == "dyn":
        check_http(settings)
        return run_in_foreground(_order(plan, settings, "frontend"))
    quiet = words.input != "http" and resolved.origins["log"].kind == "default"
    configure_dynamo_logging("warn" if quiet else settings.log, jsonl=settings.log_jsonl)
    compiled = _activated(plan)
    if settings.engine is not None:
        check_model(settings)
    if words.input == "http":
        return _serve_http(settings, compiled)
    if words.input == "text":
        return _chat(settings, compiled, options)
    if words.input == "stdin":
        return _run(_one_answer(settings, compiled, sys.stdin.read()))
    return _run(_batch(settings, compiled, Path(words.target), options))


def _settle(words: Words, resolved: Resolved, options: RunOptions) -> Resolved:
    """The settings of this run: its engine and model, planes within the process where both sides are, the router's table."""
    settings = resolved.settings
    changes: dict[str, Any] = {"engine": None}
    if words.output == "dyn":
        changes["model_name"] = settings.model_name or words.model
    else:
        changes["model"] = words.model or settings.model
        changes["engine"] = _engine(words.output, changes["model"], settings)
        if words.input != "dyn":
            local = {name: value for name, value in _LOCAL.items() if resolved.origins[name].kind == "default"}
            changes.update(local)
    tables = dict(resolved.plugin_tables)
    if options.kv_router:
        if canonical_name(settings.router or "") != _KV_ROUTER:
            raise PluginError(
                "--kv-overlap-score-weight, --router-temperature and --kv-events need the KV router: add --router-mode kv."
            )
        tables[_KV_ROUTER] = {**tables.get(_KV_ROUTER, {}), **options.kv_router}
    return msgspec.structs.replace(resolved, settings=msgspec.structs.replace(settings, **changes), plugin_tables=tables)


def _engine(output: str, model: str | None, settings: Settings) -> str:
    if output != "auto":
        return output
    if settings.engine is not None:  # from the environment or the file
        note(f"engine {settings.engine}, as configured")
        return settings.engine
    found = find_engines(blocked=settings.no_plugins)
    chosen = choose_engine(found, model)
    for engine in found:
        mark = "*" if engine == chosen else " "
        note(f"{mark} {engine.name}: {engine.description if engine.usable else engine.problem}")
    note(f"engine {chosen.name}; out=NAME takes another")
    return chosen.name


def _activated(plan: Resolved) -> Compiled:
    settings = plan.settings
    compiled = activate(
        active_plugin_names(settings, process="serve"),
        blocked=settings.no_plugins,
        tables=plan.plugin_tables,
        source=plan.file or "dynamo.toml",
        process="frontend",
    )
    check_selection(settings, compiled, process="serve")
    return compiled


def _order(plan: Resolved, settings: Settings, kind: ProcessKind, endpoint: str = "generate") -> Order:
    return Order(
        name=f"{kind}-{os.getpid()}",
        kind=kind,
        settings=settings,
        plugin_tables={key: dict(table) for key, table in plan.plugin_tables.items()},
        source=plan.file or "dynamo.toml",
        endpoint=endpoint,
        flags=dict(plan.flags),
        config_file=plan.named_file,
    )


def _run(work: Any) -> int:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        code: int = runner.run(work)
        return code


# --- inputs ------------------------------------------------------------------------------------------------------------------


def _serve_http(settings: Settings, compiled: Compiled) -> int:
    from dynamo_core.http.frontend import run_frontend
    from dynamo_core.launcher.local import local_worker

    check_http(settings)
    reservation = reserve_port(settings.http_host, settings.http_port, scheme="https" if settings.tls_cert_path else "http")
    port, url = reservation.port, reservation.url
    reservation.close()
    sock = listening_socket(settings.http_host, port, backlog=settings.http_backlog, shared=False)
    waiting: set[asyncio.Task[None]] = set()

    def on_ready(frontend: Frontend) -> None:
        task = asyncio.get_running_loop().create_task(_announce(frontend, url))
        waiting.add(task)
        task.add_done_callback(waiting.discard)

    beside = partial(local_worker, settings=settings, compiled=compiled)
    return _run(run_frontend(settings, compiled, name="run", sock=sock, on_ready=on_ready, beside=beside))


async def _announce(frontend: Frontend, url: str) -> None:
    from dynamo_core.launcher.pipeline import Pipeline

    try:
        name = await Pipeline(frontend.manager, {}).ready(None, _READY_WITHIN)
    except StartupError as error:
        note(error.message)
    else:
        show(f"ready: {url}/v1, model {name}\n")


def _chat(settings: Settings, compiled: Compiled, options: RunOptions) -> int:
    from dynamo_core.launcher.background import BackgroundPipeline
    from dynamo_core.launcher.local import open_pipeline

    name = None if settings.engine is not None else settings.model_name
    responder = BackgroundPipeline(open_pipeline(settings, compiled), name, within=_READY_WITHIN)
    converse(responder, system=options.system)
    return 0


async def _one_answer(settings: Settings, compiled: Compiled, prompt: str) -> int:
    from dynamo_core.launcher.local import open_pipeline

    async with open_pipeline(settings, compiled) as pipeline:
        model = await pipeline.ready(None if settings.engine is not None else settings.model_name, _READY_WITHIN)
        try:
            await pipeline.ask({"model": model, "prompt": prompt.removesuffix("\n")}, show)
        except DynamoError as error:
            raise StartupError(error.message) from None
    show("\n")
    return 0


async def _batch(settings: Settings, compiled: Compiled, source: Path, options: RunOptions) -> int:
    from dynamo_core.launcher.batch import output_path, run_batch
    from dynamo_core.launcher.local import open_pipeline

    target = output_path(source, options.output)
    async with open_pipeline(settings, compiled) as pipeline:
        await pipeline.ready(None if settings.engine is not None else settings.model_name, _READY_WITHIN)
        summary = await run_batch(pipeline, source, target, concurrency=options.concurrency, progress=note)
    note(f"{summary.text()}\nanswers in {target}")
    return 1 if summary.failed else 0
