"""Discovery in etcd: everything that this process puts hangs on one lease, which is kept alive and replaced when it is lost."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from typing import Any

import grpc

from dynamo_core.contracts import DiscoveryEvent
from dynamo_core.errors import CannotConnect, StartupError
from dynamo_etcd.ending import end
from dynamo_etcd.feed import Feed, interval
from dynamo_etcd.members import Member, Members, Refused, Unreachable
from dynamo_etcd.messages import rpc
from dynamo_etcd.options import Options
from dynamo_etcd.trust import Trust

__all__ = ["EtcdDiscovery"]

_log = logging.getLogger(__name__)

_MAX_VALUE = 1024 * 1024
_RETRY_SECONDS = 0.5
_CLOSE_SECONDS = 2.0


class EtcdDiscovery:
    """After the start no failure of etcd reaches a caller, except that it refuses a key for good (StartupError) or is asked
    for keys that nobody here watches while it is out of reach (CannotConnect; a watch waits as long as a start before)."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._own: dict[str, bytes] = {}
        self._unwanted: set[str] = set()
        """Keys whose deletion etcd has not heard of."""
        self._lease = 0
        self._whole = True
        """False: the store may lack what this process put, or hold what it deleted."""
        self._writing = asyncio.Lock()
        self._due = asyncio.Event()
        self._feeds: dict[str, Feed] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._keeper: asyncio.Task[None] | None = None
        self._members: Members
        self._trust: Trust

    @property
    def out_since(self) -> float | None:
        """Monotonic time since which etcd is out of reach."""
        return None if self._keeper is None else self._trust.out_since

    # --- the contract --------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        if self._keeper is not None:
            return
        ttl = self._options.ttl
        self._trust = Trust(grace=ttl)
        members = Members(self._options, seconds=min(max(ttl / 3, 1.0), 5.0))
        await members.open()
        self._members = members
        try:
            await self._reach()
        except BaseException:
            await members.close()
            raise
        self._keeper = asyncio.create_task(self._keep())

    async def put(self, key: str, value: bytes) -> None:
        if not key or len(value) > _MAX_VALUE:
            raise ValueError(f"the value of {key!r} has {len(value)} bytes; at most {_MAX_VALUE} are stored, under a key")
        self._started()
        async with self._writing:
            self._own[key] = value
            self._unwanted.discard(key)
            try:
                await self._put(key, value)
            except Unreachable as error:
                _log.warning("%s is put when etcd is back (%s)", key, error)
                self._mend()
            except Refused as error:
                if error.lease_unknown:
                    self._mend()
                    return
                del self._own[key]
                where, key = self._options.where, self._options.prefix + key
                raise StartupError(f"etcd at {where} refuses to store {key}: {error}; grant a role for it") from None

    async def delete(self, key: str) -> None:
        self._started()
        async with self._writing:
            self._own.pop(key, None)
            try:
                await self._delete(key)
            except (Unreachable, Refused) as error:
                _log.warning("%s is deleted when etcd is back (%s)", key, error)
                self._unwanted.add(key)
                self._mend()

    async def get_prefix(self, prefix: str) -> dict[str, bytes]:
        self._started()
        root = self._options.prefix
        request = rpc.RangeRequest(**interval(root + prefix))
        try:
            answer = await self._members.unary(lambda member: member.kv.Range, request)
        except (Unreachable, Refused) as error:
            for watched, feed in self._feeds.items():
                if prefix.startswith(watched) and feed.ready:
                    return feed.table.prefix(prefix)
            raise CannotConnect(f"etcd at {self._options.where} does not list {root}{prefix}: {error}") from None
        return {pair.key.decode(errors="replace").removeprefix(root): pair.value for pair in answer.kvs}

    async def watch(self, prefix: str) -> AsyncIterator[DiscoveryEvent]:
        self._started()
        feed = self._feeds.get(prefix)
        if feed is None:
            feed = self._feeds[prefix] = Feed(self._members, self._trust, self._options.prefix, prefix, self._broke)
        feed.users += 1
        try:
            await self._listed(feed, prefix)
            async for event in feed.table.watch(prefix):
                yield event
        finally:
            feed.users -= 1
            if not feed.users and self._feeds.get(prefix) is feed:
                del self._feeds[prefix]
                task = asyncio.create_task(feed.close())
                self._closing.add(task)
                task.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        keeper, self._keeper = self._keeper, None
        if keeper is None:
            return
        feeds = tuple(self._feeds.values())
        self._feeds.clear()
        await asyncio.gather(end([keeper]), *self._closing, *(feed.close() for feed in feeds), return_exceptions=True)
        self._own.clear()
        with contextlib.suppress(Unreachable, Refused, TimeoutError):
            async with asyncio.timeout(_CLOSE_SECONDS):
                await self._revoke(self._lease)
        await self._members.close()

    async def _listed(self, feed: Feed, prefix: str) -> None:
        seconds = self._options.connect_seconds
        try:
            async with asyncio.timeout(seconds):
                await feed.listed()
        except TimeoutError:
            where, key = self._options.where, self._options.prefix + prefix
            raise CannotConnect(f"etcd at {where} does not list {key} within {seconds:g} s ({feed.trouble})") from None

    # --- the lease -----------------------------------------------------------------------------------------------------------

    async def _reach(self) -> None:
        """Wait for etcd, see that it lets us in, and take a lease."""
        options, loop = self._options, asyncio.get_running_loop()
        deadline = loop.time() + options.connect_seconds
        waiting = False
        while True:
            try:
                probe = rpc.RangeRequest(**interval(options.prefix), count_only=True)
                await self._members.unary(lambda member: member.kv.Range, probe)
                self._lease = await self._grant()
                return
            except Unreachable as error:
                if loop.time() >= deadline:
                    seconds = options.connect_seconds
                    text = f"no etcd answers within {seconds:g} s at {options.where} ({error}): start it, or set ETCD_ENDPOINTS"
                    raise StartupError(text) from None
                if not waiting:
                    _log.warning("waiting up to %g s for etcd at %s (%s)", options.connect_seconds, options.where, error)
                waiting = True
                await asyncio.sleep(min(_RETRY_SECONDS, max(0.0, deadline - loop.time())))
            except Refused as error:
                raise StartupError(self._refusal(error)) from None

    def _refusal(self, error: Refused) -> str:
        where = self._options.where
        if error.code is grpc.StatusCode.UNIMPLEMENTED:
            return f"what answers at {where} is no etcd with the v3 API: set ETCD_ENDPOINTS"
        if error.code is grpc.StatusCode.PERMISSION_DENIED:
            return (
                f"etcd at {where} does not let this user read {self._options.prefix}: grant a role for it, or set another prefix"
            )
        return f"etcd at {where} refuses: {error}; set ETCD_AUTH_USERNAME and ETCD_AUTH_PASSWORD"

    async def _keep(self) -> None:
        """Renew the lease three times in its life; replace it, and put everything again, after whatever went wrong."""
        pause = self._options.ttl / 3
        complained = False
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._due.wait()
            self._due.clear()
            try:
                await self._renew()
            except Unreachable as error:
                self._whole = False
                if self._trust.lost():
                    _log.warning("etcd is out of reach, the last known state stays: %s", error)
                pause = _RETRY_SECONDS
            except Refused as error:
                if not complained:
                    _log.error("etcd at %s refuses to keep what this process put: %s", self._options.where, error)
                complained, pause = True, self._options.ttl / 3
            except Exception:  # noqa: BLE001  # whatever gRPC comes up with must not cost the lease
                _log.exception("renewing the lease in etcd failed; trying again")
                self._whole, pause = False, _RETRY_SECONDS
            else:
                if self._trust.regained():
                    _log.warning("etcd at %s answers again; %d keys are put again", self._options.where, len(self._own))
                complained, pause = False, self._options.ttl / 3

    async def _renew(self) -> None:
        if self._whole:
            if await self._members.call(self._keep_alive) > 0:
                return
            _log.warning("the lease in etcd lapsed; %d keys are put again", len(self._own))
        async with self._writing:
            self._whole = True  # a break while we write makes it false again
            old, self._lease = self._lease, await self._grant()
            for key in tuple(self._unwanted):
                await self._delete(key)
                self._unwanted.discard(key)
            for key, value in self._own.items():
                await self._put(key, value)
        with contextlib.suppress(Unreachable, Refused):
            await self._revoke(old)  # it may have outlived the outage, with keys that are not wanted any more

    def _mend(self) -> None:
        """Have the keeper put the store right."""
        self._whole = False
        self._due.set()

    def _broke(self) -> None:
        """A stream ended: the store may have restarted."""
        self._trust.shaken()
        self._mend()

    # --- single calls --------------------------------------------------------------------------------------------------------

    async def _grant(self) -> int:
        answer = await self._members.unary(lambda member: member.lease.LeaseGrant, rpc.LeaseGrantRequest(TTL=self._options.ttl))
        return int(answer.ID)

    async def _revoke(self, lease: int) -> None:
        await self._members.unary(lambda member: member.lease.LeaseRevoke, rpc.LeaseRevokeRequest(ID=lease))

    async def _keep_alive(self, member: Member) -> int:
        """Seconds that the lease still has; 0: it is gone."""

        async def requests() -> AsyncIterator[Any]:
            yield rpc.LeaseKeepAliveRequest(ID=self._lease)

        members = self._members
        call = member.lease.LeaseKeepAlive(requests(), timeout=members.seconds, metadata=members.metadata)
        try:
            async for answer in call:
                return int(answer.TTL)
            return 0
        finally:
            call.cancel()

    async def _put(self, key: str, value: bytes) -> None:
        request = rpc.PutRequest(key=(self._options.prefix + key).encode(), value=value, lease=self._lease)
        await self._members.unary(lambda member: member.kv.Put, request)

    async def _delete(self, key: str) -> None:
        request = rpc.DeleteRangeRequest(key=(self._options.prefix + key).encode())
        await self._members.unary(lambda member: member.kv.DeleteRange, request)

    def _started(self) -> None:
        if self._keeper is None:
            raise RuntimeError("the discovery store is not started")
