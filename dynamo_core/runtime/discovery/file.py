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
from collections.abc import AsyncIterator, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import msgspec

from dynamo_core.contracts.discovery import DiscoveryEvent
from dynamo_core.hookspecs import hookimpl
from dynamo_core.runtime.discovery.folder import HEARTBEAT_SECONDS, Folder
from dynamo_core.runtime.discovery.table import Table
from dynamo_core.specs import DiscoverySpec

__all__ = ["FileConfig", "FileDiscovery", "dynamo_config", "dynamo_discovery"]

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

_POLL_SECONDS = 0.1


class FileConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    path: str | None = None
    """The folder; ``None``: ``DYN_FILE_KV``, else ``dynamo-<uid>/kv`` in the temporary folder."""


class FileDiscovery:
    """Polls ten times a second while anybody watches; the disk is touched only from a thread of its own."""

    def __init__(self, path: str | None) -> None:
        default = Path(tempfile.gettempdir()) / f"dynamo-{os.getuid()}" / "kv"
        self._folder = Folder(Path(path).absolute() if path else default)
        self._private = path is None
        self._table = Table()
        self._thread: ThreadPoolExecutor | None = None
        self._poller: asyncio.Task[None] | None = None
        self._poke = asyncio.Event()

    async def start(self) -> None:
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, "discovery")
            try:
                await self._do(lambda: self._folder.create(private=self._private))
            except BaseException:
                self._thread.shutdown(wait=False)
                self._thread = None
                raise
            self._poller = asyncio.create_task(self._poll())

    async def put(self, key: str, value: bytes) -> None:
        await self._do(lambda: self._folder.put(key, value))
        self._poke.set()

    async def delete(self, key: str) -> None:
        await self._do(lambda: self._folder.delete(key))
        self._poke.set()

    async def get_prefix(self, prefix: str) -> dict[str, bytes]:
        await self._scan()
        return self._table.prefix(prefix)

    async def watch(self, prefix: str) -> AsyncIterator[DiscoveryEvent]:
        await self._scan()
        self._poke.set()
        async for event in self._table.watch(prefix):
            yield event

    async def close(self) -> None:
        poller, self._poller = self._poller, None
        if poller is not None:
            poller.cancel()
            await asyncio.gather(poller, return_exceptions=True)
        if self._thread is not None:
            await self._do(self._folder.drop)
            self._thread.shutdown(wait=False)
            self._thread = None

    async def _do(self, work: Callable[[], _T]) -> _T:
        if self._thread is None:
            raise RuntimeError("the discovery store is not started")
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    async def _scan(self) -> None:
        self._table.replace(await self._do(self._folder.scan))

    async def _poll(self) -> None:
        """Heartbeat, and scans while there are watchers. An error of the disk is logged once a spell and tried again."""
        loop = asyncio.get_running_loop()
        due, failing = loop.time() + HEARTBEAT_SECONDS, False
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_POLL_SECONDS if self._table.watched else HEARTBEAT_SECONDS):
                    await self._poke.wait()
            self._poke.clear()
            try:
                if loop.time() >= due:
                    await self._do(self._folder.beat)
                    due = loop.time() + HEARTBEAT_SECONDS
                if self._table.watched:
                    await self._scan()
                failing = False
            except OSError as error:
                if not failing:
                    _log.error("the discovery folder is out of reach, the last known state stays: %s", error)
                failing = True


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
