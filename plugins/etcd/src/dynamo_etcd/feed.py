"""List, then watch; again after every break and compaction."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import grpc.aio

from dynamo_core.runtime.discovery import Table
from dynamo_etcd.ending import end
from dynamo_etcd.members import Members, Refused, Unreachable
from dynamo_etcd.messages import END_OF_STREAM, kv, rpc
from dynamo_etcd.trust import Trust

__all__ = ["Feed", "interval"]

_log = logging.getLogger(__name__)

_PAUSE_SECONDS = 0.5


def interval(prefix: str) -> dict[str, bytes]:
    """``key`` and ``range_end`` of all keys that begin with ``prefix``, which is not empty."""
    key = prefix.encode()
    return {"key": key, "range_end": key[:-1] + bytes([key[-1] + 1])}  # UTF-8 has no byte 255


class Feed:
    """Keeps ``table`` the same as what the store holds below ``root + prefix``. ``on_break`` is told when a connection broke."""

    def __init__(self, members: Members, trust: Trust, root: str, prefix: str, on_break: Callable[[], None]) -> None:
        self.table = Table()
        self.users = 0
        self.trouble = "no answer"
        """Why it is not listed."""
        self._members = members
        self._trust = trust
        self._root = root
        self._where = interval(root + prefix)
        self._on_break = on_break
        self._listed = asyncio.Event()
        self._missing: set[str] = set()
        self._settler: asyncio.Task[None] | None = None
        self._task = asyncio.create_task(self._run())

    @property
    def ready(self) -> bool:
        """The store has been listed once; since then the table is the last known state."""
        return self._listed.is_set()

    async def listed(self) -> None:
        await self._listed.wait()

    async def close(self) -> None:
        await end(task for task in (self._task, self._settler) if task is not None)

    async def _run(self) -> None:
        complained = False
        while True:
            try:
                revision = await self._list()
                complained = False
                if await self._follow(revision + 1):
                    continue
            except (Unreachable, grpc.aio.AioRpcError) as error:
                _log.debug("following etcd was interrupted: %s", error)
                self.trouble = str(error) if isinstance(error, Unreachable) else str(error.details() or error.code().name)
                self._on_break()
            except Refused as error:
                self.trouble = str(error)
                if not complained:
                    _log.error("etcd refuses to list what begins with %s: %s", self._where["key"].decode(), error)
                complained = True
            except Exception:  # noqa: BLE001  # whatever gRPC comes up with must not end the watch
                _log.exception("following etcd failed; trying again")
                self._on_break()
            await asyncio.sleep(_PAUSE_SECONDS)

    async def _list(self) -> int:
        """Returns the revision of the store that the table shows."""
        answer = await self._members.unary(lambda member: member.kv.Range, rpc.RangeRequest(**self._where))
        found: set[str] = set()
        for pair in answer.kvs:
            key = self._key(pair.key)
            if key is not None:
                found.add(key)
                self._present(key, pair.value)
        for key in [key for key in self.table.values if key not in found]:
            self._absent(key)
        if self.ready:
            self.table.resynced()
        self._listed.set()
        return int(answer.header.revision)

    async def _follow(self, revision: int) -> bool:
        """True after a compaction: list again at once. Returns or raises AioRpcError when the stream ends."""
        member = self._members.current
        call = member.watch.Watch(metadata=self._members.metadata)
        try:
            create = rpc.WatchCreateRequest(**self._where, start_revision=revision)
            await call.write(rpc.WatchRequest(create_request=create))
            while True:
                answer = await call.read()
                if answer is END_OF_STREAM:
                    self._on_break()
                    return False
                if answer.canceled:
                    _log.debug("etcd ended a watch: %s", answer.cancel_reason or "compaction")
                    return bool(answer.compact_revision)
                for event in answer.events:
                    self._take(event)
        except grpc.aio.AioRpcError:
            self._members.leave(member)
            raise
        finally:
            call.cancel()

    def _take(self, event: Any) -> None:
        key = self._key(event.kv.key)
        if key is None:
            return
        if event.type == kv.Event.DELETE:
            self._absent(key)
        else:
            self._present(key, event.kv.value)

    def _key(self, raw: bytes) -> str | None:
        try:
            return raw.decode().removeprefix(self._root)
        except UnicodeDecodeError:
            _log.warning("key %r in etcd is ignored: it is not UTF-8", raw)
            return None

    def _present(self, key: str, value: bytes) -> None:
        self._missing.discard(key)
        self.table.put(key, value)

    def _absent(self, key: str) -> None:
        if self._trust.good:
            self.table.delete(key)
        elif key in self.table.values:
            self._missing.add(key)
            if self._settler is None or self._settler.done():
                self._settler = asyncio.create_task(self._settle())

    async def _settle(self) -> None:
        """What is still absent when absences are believed again has left."""
        await self._trust.restored()
        for key in self._missing:
            self.table.delete(key)
        self._missing.clear()
