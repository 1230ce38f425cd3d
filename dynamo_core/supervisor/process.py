"""One child process and its successors."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import os
import signal
import socket
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from dynamo_core.errors import ServiceUnavailable, StartupError
from dynamo_core.supervisor.back_off import BackOff
from dynamo_core.supervisor.channel import LINE_LIMIT, Channel
from dynamo_core.supervisor.log_stream import LogStream

__all__ = ["ChildStartError", "Process", "ProcessPlan", "ProcessState"]

_FAILED_STARTS = 2
"""A process that ended this often before it was ever ready will not come up by trying again."""
_LAST_LINES = 25
_KILLED_SOON = 5.0
"""Seconds that a process gets to end when it had not become ready: it has nothing to finish."""


class ProcessPlan(msgspec.Struct, frozen=True, kw_only=True):
    """How a process is started. ``--control=FD --lifeline=FD`` follow ``command``."""

    name: str
    kind: str
    command: Sequence[str]
    environ: Mapping[str, str]


class ProcessState(enum.StrEnum):
    STARTING = "starting"
    READY = "ready"
    WAITING = "waiting"
    """It ended and is started again after a pause."""
    STOPPING = "stopping"
    STOPPED = "stopped"


class ChildStartError(StartupError):
    """A process never became ready. ``lines`` is what it said last; empty when the message says it all."""

    def __init__(self, message: str, lines: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.lines = tuple(lines)


class Process:
    """Owned by one task that awaits :meth:`run`; everything else is called on the same event loop."""

    def __init__(
        self,
        plan: ProcessPlan,
        *,
        lifeline_fd: int,
        log: LogStream,
        on_change: Callable[[Process], None] = lambda _process: None,
        back_off: BackOff | None = None,
    ) -> None:
        self.name = plan.name
        self.kind = plan.kind
        self.state = ProcessState.STARTING
        self.stage = ""
        """What it says it is doing until it is ready."""
        self.restarts = 0
        self.facts: dict[str, Any] = {}
        """What it told when it became ready."""
        self._plan = plan
        self._lifeline_fd = lifeline_fd
        self._log = log
        self._on_change = on_change
        self._back_off = back_off or BackOff()
        self._popen: subprocess.Popen[bytes] | None = None
        self._ended = asyncio.Event()
        self._stop = asyncio.Event()
        self._channel: Channel | None = None
        self._failure: ChildStartError | None = None
        self._ever_ready = False
        self._failed_starts = 0
        self._last_lines: deque[str] = deque(maxlen=_LAST_LINES)

    @property
    def pid(self) -> int | None:
        return self._popen.pid if self._popen is not None else None

    async def run(self) -> None:
        """Keep the process alive until :meth:`stop`. Raises :class:`ChildStartError` when it never gets ready."""
        while not self._stop.is_set():
            started = time.monotonic()
            code = await self._live()
            if self._stop.is_set():
                break
            self._judge(code)
            pause = self._back_off.pause(time.monotonic() - started)
            reason = f": {self._failure.message}" if self._failure is not None else ""
            self._say(f"{_ending(code)}{reason}; starts again in {pause:g} s")
            self._become(ProcessState.WAITING)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._stop.wait()
            self.restarts += 1
        self._become(ProcessState.STOPPED)

    async def ask(self, name: str, data: Mapping[str, Any] | None = None, *, within: float = 2.0) -> dict[str, Any]:
        """Ask the process. Raises :class:`ServiceUnavailable` when it is not there or does not answer."""
        if self._channel is None:
            raise ServiceUnavailable(f"{self.name} is not running.")
        return await self._channel.ask(name, data, within=within)

    async def stop(self, grace: float) -> None:
        """SIGTERM, ``grace`` seconds to finish, then SIGKILL. Returns when it has ended; it is not started again."""
        was_ready = self.state is ProcessState.READY
        self._stop.set()
        if self._popen is None:
            return
        self._become(ProcessState.STOPPING)
        self._popen.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(grace if was_ready else min(grace, _KILLED_SOON)):
                await self._ended.wait()
        except TimeoutError:
            if was_ready:
                self._say(f"did not end within {grace:g} s; killed")
            self.kill()
            await self._ended.wait()

    def kill(self) -> None:
        """SIGKILL for the process and all that it started; it is not started again."""
        self._stop.set()
        if self._popen is not None:
            _kill_group(self._popen.pid)

    async def _live(self) -> int:
        """One life, from start to end. Returns the exit code as :class:`subprocess.Popen` has it."""
        self._ended.clear()
        self._failure, self.stage = None, ""
        ours, theirs = socket.socketpair()
        with theirs:
            read_fd, write_fd = os.pipe()
            try:
                popen = self._popen = self._spawn(theirs.fileno(), write_fd)
            except OSError as error:  # out of memory or processes: as if it had ended, so that it is tried again
                ours.close()
                os.close(read_fd)
                self._say(f"cannot be started ({error})")
                return 127
            finally:
                os.close(write_fd)
        self._become(ProcessState.STARTING)
        output = await self._read_output(read_fd)
        reader, writer = await asyncio.open_unix_connection(sock=ours, limit=LINE_LIMIT)
        self._channel = Channel(reader, writer, on_event=self._take_event)
        conversation = asyncio.create_task(self._channel.run())
        try:
            await _end_of(popen.pid)
            _kill_group(popen.pid)  # it is not reaped yet, so the group is surely its own
            code = popen.wait()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    await asyncio.gather(output, conversation)
        finally:
            self._popen = self._channel = None
            self.facts = {}
            conversation.cancel()
            self._remember(self._log.end(self.name))
            self._ended.set()
        return code

    def _spawn(self, control_fd: int, output_fd: int) -> subprocess.Popen[bytes]:
        ties = [f"--control={control_fd}", f"--lifeline={self._lifeline_fd}"]
        return subprocess.Popen(  # noqa: S603 - our own interpreter
            [*self._plan.command, *ties],
            stdin=subprocess.DEVNULL,
            stdout=output_fd,
            stderr=output_fd,
            pass_fds=(control_fd, self._lifeline_fd),
            env=dict(self._plan.environ),
            start_new_session=True,  # Ctrl-C is the supervisor's business, and the group can be killed as a whole
        )

    async def _read_output(self, fd: int) -> asyncio.Future[None]:
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        protocol = _Output(lambda data: self._remember(self._log.feed(self.name, data)), done)
        await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, os.fdopen(fd, "rb", buffering=0))
        return done

    def _take_event(self, name: str, data: dict[str, Any]) -> None:
        if name == "ready":
            self._ever_ready, self.facts, self.stage = True, data, ""
            if self.state is ProcessState.STARTING:
                self._become(ProcessState.READY)
        elif name == "stage":
            self.stage = str(data.get("text", ""))
            self._on_change(self)
        elif name == "failed":
            self._failure = ChildStartError(str(data["message"]), self._last_lines if data.get("explained") else ())

    def _judge(self, code: int) -> None:
        if self._ever_ready:
            return
        if self._failure is not None:
            raise self._failure
        self._failed_starts += 1
        if self._failed_starts >= _FAILED_STARTS:
            text = f"{self.name} {_ending(code)} before it was ready, {self._failed_starts} times in a row: see its last lines."
            raise ChildStartError(text, self._last_lines)

    def _remember(self, lines: Sequence[bytes]) -> None:
        self._last_lines.extend(line.decode(errors="replace") for line in lines if line.strip())

    def _say(self, text: str) -> None:
        self._log.feed("supervisor", f"{self.name} {text}\n".encode())

    def _become(self, state: ProcessState) -> None:
        self.state = state
        self._on_change(self)


class _Output(asyncio.Protocol):
    def __init__(self, take: Callable[[bytes], None], done: asyncio.Future[None]) -> None:
        self._take = take
        self._done = done

    def data_received(self, data: bytes) -> None:
        self._take(data)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        if not self._done.done():
            self._done.set_result(None)


async def _end_of(pid: int) -> None:
    """Wait for the end of a child without reaping it, so that neither its id nor its group's can be taken by another."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()

    def wait() -> None:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody wants to know
            loop.call_soon_threadsafe(ended.set)

    threading.Thread(target=wait, name=f"wait-{pid}", daemon=True).start()
    await ended.wait()


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS says EPERM of a group of zombies
        os.killpg(pid, signal.SIGKILL)


def _ending(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"
