"""What ``dynamo status`` shows of one run, put together from what its processes answer."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from dynamo_core.contracts.engine import EngineLoad
from dynamo_core.errors import ServiceUnavailable
from dynamo_core.supervisor.process import Process

__all__ = [
    "FrontendReport",
    "ModelStatus",
    "ProcessStatus",
    "ReloadReport",
    "RunStatus",
    "WorkerLoad",
    "WorkerReport",
    "WorkerStatus",
    "ask_all",
    "run_status",
]


class ProcessStatus(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    kind: str
    pid: int | None
    state: str
    restarts: int = 0


class ModelStatus(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    engine: str = ""
    workers: int = 0


class WorkerLoad(msgspec.Struct, frozen=True, kw_only=True):
    """:class:`~dynamo_core.contracts.engine.EngineLoad`, with zeros written out."""

    running: int = 0
    waiting: int = 0
    kv_used_blocks: int = 0
    kv_total_blocks: int = 0
    prefill_tokens: int = 0

    @classmethod
    def of(cls, load: EngineLoad | None) -> WorkerLoad:
        return cls() if load is None else msgspec.convert(load, cls, from_attributes=True)


class WorkerStatus(msgspec.Struct, frozen=True, kw_only=True):
    id: int
    """Of its instance in discovery."""
    name: str | None = None
    """Of its process; ``None`` for a worker that this run did not start."""
    pid: int | None = None
    model: str = ""
    load: WorkerLoad = WorkerLoad()
    """Its own latest reading, as the frontends have it."""
    inflight: int = 0
    """Requests that this run's frontends have on it."""


class FrontendReport(msgspec.Struct, frozen=True, kw_only=True):
    """A frontend's answer: what it can route to."""

    models: tuple[ModelStatus, ...] = ()
    workers: tuple[WorkerStatus, ...] = ()
    broken: dict[str, str] = {}
    """Model → why this frontend cannot serve it."""


class WorkerReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker tells when it becomes ready, and when it is asked."""

    id: int
    model: str = ""
    asleep: bool = False


class ReloadReport(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a reload."""

    reloaded: tuple[str, ...] = ()
    """Frontends that serve with what the file says."""
    refused: dict[str, str] = {}
    """Frontend → why it stays with what it had; ``configuration`` for what all of them would refuse."""
    plugins: tuple[str, ...] = ()
    """Active in the frontends that reloaded."""


class RunStatus(msgspec.Struct, frozen=True, kw_only=True):
    pid: int
    """Of the supervisor."""
    url: str
    started: float
    """Seconds since the epoch."""
    processes: tuple[ProcessStatus, ...]
    models: tuple[ModelStatus, ...]
    workers: tuple[WorkerStatus, ...]


async def ask_all(
    processes: Sequence[Process], name: str, data: Mapping[str, Any] | None = None, *, within: float = 2.0
) -> dict[str, dict[str, Any] | ServiceUnavailable]:
    """One question to many processes at once; an answer or the reason for its absence by process name."""

    async def ask(process: Process) -> dict[str, Any] | ServiceUnavailable:
        try:
            return await process.ask(name, data, within=within)
        except ServiceUnavailable as error:
            return error

    answers = await asyncio.gather(*(ask(process) for process in processes))
    return {process.name: answer for process, answer in zip(processes, answers, strict=True)}


async def run_status(processes: Sequence[Process], *, pid: int, url: str, started: float) -> RunStatus:
    """Ask everybody. A process that does not answer in time is listed all the same, without its load."""
    answers = await ask_all(processes, "status")
    models: dict[str, ModelStatus] = {}
    workers: dict[int, WorkerStatus] = {}
    for process in processes:
        answer = answers[process.name]
        if process.kind == "frontend" and isinstance(answer, dict):
            _add_frontend(msgspec.convert(answer, FrontendReport), models, workers)
    asleep: set[str] = set()
    for process in processes:
        answer = answers[process.name]
        if process.kind == "worker" and process.facts:
            report = msgspec.convert(answer if isinstance(answer, dict) else process.facts, WorkerReport)
            _add_worker(process, report, workers)
            if report.asleep:
                asleep.add(process.name)
    return RunStatus(
        pid=pid,
        url=url,
        started=started,
        processes=tuple(
            ProcessStatus(
                name=p.name, kind=p.kind, pid=p.pid, state="asleep" if p.name in asleep else str(p.state), restarts=p.restarts
            )
            for p in processes
        ),
        models=tuple(models[name] for name in sorted(models)),
        workers=tuple(sorted(workers.values(), key=lambda worker: (worker.name or "~", worker.id))),
    )


def _add_frontend(report: FrontendReport, models: dict[str, ModelStatus], workers: dict[int, WorkerStatus]) -> None:
    for model in report.models:
        known = models.get(model.name)
        if known is None or known.workers < model.workers:
            models[model.name] = model
    for worker in report.workers:
        seen = workers.get(worker.id)
        workers[worker.id] = worker if seen is None else msgspec.structs.replace(seen, inflight=seen.inflight + worker.inflight)


def _add_worker(process: Process, report: WorkerReport, workers: dict[int, WorkerStatus]) -> None:
    seen = workers.get(report.id) or WorkerStatus(id=report.id)
    workers[report.id] = msgspec.structs.replace(seen, name=process.name, pid=process.pid, model=report.model or seen.model)
