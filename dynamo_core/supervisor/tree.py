"""The process tree of one run: all up, all watched, all down."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Sequence

import msgspec

from dynamo_core.errors import StartupError
from dynamo_core.runtime.signals import on_hangup
from dynamo_core.supervisor.admin import ADMIN_SOCKET, AdminServer
from dynamo_core.supervisor.back_off import BackOff
from dynamo_core.supervisor.log_stream import LogStream
from dynamo_core.supervisor.process import Process, ProcessPlan, ProcessState
from dynamo_core.supervisor.progress import Progress
from dynamo_core.supervisor.run_state import RunFolder, RunState
from dynamo_core.supervisor.status import FrontendReport, ReloadReport, RunStatus, ask_all, run_status

__all__ = ["Supervisor"]

_AFTER_GRACE = 5.0
"""Seconds that a process gets beyond the grace time of its requests, to free its engine."""
_RELOAD_WITHIN = 30.0
_POLL = 0.05
"""Seconds between looks at what frontends have discovered, before the run is ready."""


class Supervisor:
    """Makes the processes of ``plans`` and keeps them. One :meth:`run` for each object, in the main thread.

    ``renew`` is called on a reload before the frontends hear of it: it reads the configuration again, so that processes that
    start later have it as well, and raises :class:`StartupError` for one that cannot be right.
    """

    def __init__(
        self,
        plans: Sequence[ProcessPlan],
        *,
        folder: RunFolder,
        state: RunState,
        log: LogStream,
        progress: Progress,
        grace: float,
        announce: Callable[[RunStatus], None],
        back_off: Callable[[], BackOff] = BackOff,
        renew: Callable[[], None] = lambda: None,
    ) -> None:
        self._folder = folder
        self._state = state
        self._log = log
        self._progress = progress
        self._grace = grace
        self._announce = announce
        self._renew = renew
        self._reloading: set[asyncio.Task[None]] = set()
        self._stop = asyncio.Event()
        self._changed = asyncio.Event()
        self._ready = False
        self._forced = False
        self._lifeline, self._lifeline_end = os.pipe()  # our end closes when we end, however that happens
        self._processes = [
            Process(plan, lifeline_fd=self._lifeline, log=log, on_change=self._note_change, back_off=back_off()) for plan in plans
        ]

    async def run(self) -> int:
        """Until a signal: 0, or 130 when a second one cut it short. Raises :class:`ChildStartError` when all are down."""
        loop = asyncio.get_running_loop()
        signals = [signal.SIGINT, signal.SIGTERM]
        for signum in signals:
            loop.add_signal_handler(signum, self._on_signal)
        unregister = on_hangup(self._on_reload_signal, self._on_signal)
        admin = AdminServer(self._processes, self._status, self._reload)
        await admin.start(self._folder.path / ADMIN_SOCKET)
        self._folder.publish(self._state)
        lives = [asyncio.create_task(process.run(), name=process.name) for process in self._processes]
        opening = asyncio.create_task(self._open(), name="open")
        stopping = asyncio.create_task(self._stop.wait(), name="stop")
        try:
            await self._watch(lives, opening, stopping)
        finally:
            opening.cancel()
            stopping.cancel()
            await self._end(lives)
            await admin.close()
            await asyncio.gather(opening, stopping, return_exceptions=True)
            for signum in signals:
                loop.remove_signal_handler(signum)
            unregister()
            for task in self._reloading:
                task.cancel()
            await asyncio.gather(*self._reloading, return_exceptions=True)
            os.close(self._lifeline)
            os.close(self._lifeline_end)
        return 130 if self._forced else 0

    async def _watch(self, lives: list[asyncio.Task[None]], opening: asyncio.Task[None], stopping: asyncio.Task[bool]) -> None:
        pending: set[asyncio.Task[None] | asyncio.Task[bool]] = {*lives, opening, stopping}
        while not self._stop.is_set():
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()

    async def _open(self) -> None:
        """Ready means: every process is, and every frontend can route to every worker."""
        while not await self._all_ready():
            self._progress.tick()
        self._ready = True
        self._progress.finish()
        self._announce(await self._status())

    async def _all_ready(self) -> bool:
        if any(process.state is not ProcessState.READY for process in self._processes):
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    await self._changed.wait()
            return False
        workers = self._of_kind("worker")
        wanted, ours = {worker.facts["id"] for worker in workers}, {worker.facts.get("model") for worker in workers}
        answers = await ask_all(self._of_kind("frontend"), "status")
        for answer in answers.values():
            report = msgspec.convert(answer, FrontendReport) if isinstance(answer, dict) else None
            for model, why in (report.broken if report else {}).items():
                if model in ours:  # a shared store may have models of others
                    raise StartupError(f"model {model} cannot be served: {why}")
            if report is None or wanted - {worker.id for worker in report.workers}:
                await asyncio.sleep(_POLL)
                return False
        return True

    async def _end(self, lives: list[asyncio.Task[None]]) -> None:
        """Frontends first: their running requests need the workers."""
        self._progress.finish()
        grace = self._grace + _AFTER_GRACE
        if self._ready:
            await asyncio.gather(*(process.stop(grace) for process in self._of_kind("frontend")))
        await asyncio.gather(*(process.stop(grace) for process in self._processes))
        await asyncio.gather(*lives, return_exceptions=True)

    def _of_kind(self, kind: str) -> list[Process]:
        return [process for process in self._processes if process.kind == kind]

    async def _status(self) -> RunStatus:
        return await run_status(self._processes, pid=self._state.pid, url=self._state.url, started=self._state.started)

    async def _reload(self) -> ReloadReport:
        try:
            self._renew()
        except StartupError as error:
            return ReloadReport(refused={"configuration": error.message})
        answers = await ask_all(self._of_kind("frontend"), "reload", within=_RELOAD_WITHIN)
        done = {name: answer for name, answer in answers.items() if isinstance(answer, dict)}
        return ReloadReport(
            reloaded=tuple(done),
            refused={name: answer.message for name, answer in answers.items() if not isinstance(answer, dict)},
            plugins=tuple(next(iter(done.values()), {}).get("plugins", ())),
        )

    def _on_reload_signal(self) -> None:
        task = asyncio.create_task(self._reload_and_tell(), name="reload")
        self._reloading.add(task)
        task.add_done_callback(self._reloading.discard)

    async def _reload_and_tell(self) -> None:
        report = await self._reload()
        lines = [f"not reloaded, {name} stays as it is: {why}" for name, why in report.refused.items()]
        if report.reloaded:
            lines.append(f"reloaded {', '.join(report.reloaded)}: plugins {', '.join(report.plugins)}")
        self._log.feed("supervisor", "".join(f"{line}\n" for line in lines).encode())

    def _note_change(self, process: Process) -> None:
        self._progress.changed(process)
        self._changed.set()

    def _on_signal(self) -> None:
        if not self._stop.is_set():
            self._log.feed(
                "supervisor", f"stopping: running requests get {self._grace:g} s; Ctrl-C again ends at once\n".encode()
            )
            self._stop.set()
            return
        self._forced = True
        for process in self._processes:
            process.kill()
