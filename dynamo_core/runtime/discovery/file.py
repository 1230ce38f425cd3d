"""Plugin ``file``: discovery in a folder that the processes of one host (or a shared file system) share.

``[plugins.file] path``, ``DYN_FILE_KV`` or a folder of the user's own below the temporary folder. The death of a process on this
host is noticed within about 0.3 s, elsewhere when its heartbeat is 10 s old.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple, TypeVar

import msgspec

from dynamo_core.contracts.discovery import DiscoveryEvent
from dynamo_core.hookspecs import hookimpl
from dynamo_core.runtime.discovery.folder import HEARTBEAT_SECONDS, Folder
from dynamo_core.runtime.discovery.table import Table
from dynamo_core.specs import DiscoverySpec

__all__ = ["FileConfig", "FileDiscovery", "dynamo_config", "dynamo_discovery"]

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

_POLL_SECONDS, _CALM_SECONDS = 0.1, 0.25
"""Between two looks at the folder: soon after something changed, and later."""
_LIVELY_SECONDS = 10.0


class FileConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    path: str | None = None
    """The folder; ``None``: ``DYN_FILE_KV``, else ``dynamo-<uid>/kv`` in the temporary folder."""


class FileDiscovery:
    """All work on the disk is done by one thread, which looks at the folder again and again while anybody watches and wakes the
    event loop only with news. Its heartbeat says that the process lives; whether its loop does, the request plane asks."""

    def __init__(self, path: str | None) -> None:
        default = Path(tempfile.gettempdir()) / f"dynamo-{os.getuid()}" / "kv"
        self._folder = Folder(Path(path).absolute() if path else default)
        self._private = path is None
        self._table = Table()
        self._watchers = 0
        self._clerk: _Clerk | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        # The thread's own:
        self._seen: dict[str, bytes] = {}
        self._beat_at = self._changed_at = 0.0
        self._failing = False

    async def start(self) -> None:
        if self._clerk is None:
            self._loop = asyncio.get_running_loop()
            self._beat_at = self._changed_at = time.monotonic()
            self._clerk = clerk = _Clerk(self._loop, self._round)
            try:
                await clerk.do(lambda: self._folder.create(private=self._private))
            except BaseException:
                self._clerk = None
                clerk.do(lambda: None, last=True)
                raise

    async def put(self, key: str, value: bytes) -> None:
        await self._do(lambda: self._folder.put(key, value))

    async def delete(self, key: str) -> None:
        await self._do(lambda: self._folder.delete(key))

    async def get_prefix(self, prefix: str) -> dict[str, bytes]:
        await self._do(self._look)
        return self._table.prefix(prefix)

    async def watch(self, prefix: str) -> AsyncIterator[DiscoveryEvent]:
        self._watchers += 1
        try:
            await self._do(self._look)
            async for event in self._table.watch(prefix):
                yield event
        finally:
            self._watchers -= 1

    async def close(self) -> None:
        clerk, self._clerk = self._clerk, None
        if clerk is not None:
            await clerk.do(self._folder.drop, last=True)

    async def _do(self, work: Callable[[], _T]) -> _T:
        if self._clerk is None:
            raise RuntimeError("the discovery store is not started")
        return await self._clerk.do(work)

    # --- in the thread -------------------------------------------------------------------------------------------------------

    def _round(self) -> float:
        """Heartbeat, and a look if anybody watches; returns the seconds until the next one. An error of the disk is logged once a
        spell and tried again."""
        now = time.monotonic()
        try:
            if now - self._beat_at >= HEARTBEAT_SECONDS:
                self._folder.beat()
                self._beat_at = now
            if self._watchers:
                self._look()
            self._failing = False
        except Exception as error:  # noqa: BLE001  # nobody else does this work
            if not self._failing:
                broken = None if isinstance(error, OSError) else error
                _log.error("the discovery folder is out of reach, the last known state stays: %s", error, exc_info=broken)
            self._failing = True
        if not self._watchers:
            return HEARTBEAT_SECONDS
        return _POLL_SECONDS if now - self._changed_at < _LIVELY_SECONDS else _CALM_SECONDS

    def _look(self) -> None:
        values = self._folder.scan()
        if values != self._seen and self._loop is not None:
            self._seen, self._changed_at = values, time.monotonic()
            self._loop.call_soon_threadsafe(self._table.replace, values)


class _Job(NamedTuple):
    work: Callable[[], Any]
    future: asyncio.Future[Any]
    last: bool


class _Clerk:
    """A thread that does what it is asked for, one thing after the other, and each time and whenever it is due a ``round``, which
    returns the seconds until the next."""

    def __init__(self, loop: asyncio.AbstractEventLoop, round: Callable[[], float]) -> None:
        self._loop = loop
        self._round = round
        self._jobs: SimpleQueue[_Job] = SimpleQueue()
        threading.Thread(target=self._run, name="discovery", daemon=True).start()

    def do(self, work: Callable[[], _T], *, last: bool = False) -> asyncio.Future[_T]:
        """The future has its result after everything that ``work`` had the loop do. The thread ends with the ``last`` job."""
        future: asyncio.Future[_T] = self._loop.create_future()
        self._jobs.put(_Job(work, future, last))
        return future

    def _run(self) -> None:
        pause = 0.0
        while not self._loop.is_closed():  # else nobody is left to work for
            try:
                job = self._jobs.get(timeout=pause)
            except Empty:
                pause = self._round()
                continue
            self._answer(job.work, job.future)
            if job.last:
                return
            pause = 0.0

    def _answer(self, work: Callable[[], Any], future: asyncio.Future[Any]) -> None:
        result: Any = None
        failure: BaseException | None = None
        try:
            result = work()
        except Exception as error:  # noqa: BLE001  # whoever asked gets it
            failure = error
        with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
            self._loop.call_soon_threadsafe(_settle, future, result, failure)


def _settle(future: asyncio.Future[Any], result: Any, failure: BaseException | None) -> None:
    if future.done():  # whoever asked was cancelled
        return
    if failure is None:
        future.set_result(result)
    else:
        future.set_exception(failure)


@hookimpl
def dynamo_config() -> type[msgspec.Struct]:
    return FileConfig


@hookimpl
def dynamo_discovery() -> Iterable[DiscoverySpec]:
    yield DiscoverySpec(
        name="file",
        factory=lambda config, _context: FileDiscovery((config and config.path) or os.environ.get("DYN_FILE_KV") or None),
        description="A folder shared by the processes of one host.",
    )
