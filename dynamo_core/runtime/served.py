"""An endpoint that this process serves, from its first appearance in discovery to its last request."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from dynamo_core.contracts.discovery import Instance
from dynamo_core.errors import StartupError

if TYPE_CHECKING:
    from dynamo_core.runtime.canary import Canary
    from dynamo_core.runtime.component import Endpoint

__all__ = ["Served"]

_log = logging.getLogger(__name__)


class Served:
    """Listed in discovery unless it has left or a reason suspends it. Made by ``Endpoint.serve``."""

    def __init__(self, endpoint: Endpoint, instance: Instance) -> None:
        self.endpoint = endpoint
        self.instance = instance
        self.graceful = True
        self.metrics_labels: tuple[tuple[str, str], ...] = ()
        self.health_check_payload: Mapping[str, Any] | None = None
        self.canary: Canary | None = None
        """Started by ``Endpoint.serve``, ended by :meth:`close`."""
        self._key = f"instances/{endpoint.namespace}/{endpoint.component}/{endpoint.name}/{instance.instance_id:x}"
        self._suspended: set[str] = set()
        self._listing = asyncio.Lock()
        self._idle: asyncio.Task[None] | None = None
        self._closed = asyncio.Event()
        self._listed = False
        self._was_put = False

    @property
    def left(self) -> bool:
        return self._idle is not None

    @property
    def suspended(self) -> frozenset[str]:
        """Why it is not in discovery: ``asleep``, ``unregistered``, ``canary``."""
        return frozenset(self._suspended)

    @property
    def listed(self) -> bool:
        """Others find it: it is in discovery, as far as this process knows."""
        return self._listed and not self.left and not self._suspended

    @property
    def state(self) -> str:
        """One word for operators: ``ready``, ``starting``, ``draining``, or the reasons for which it is out of discovery."""
        if self.left:
            return "draining"
        return " ".join(sorted(self._suspended)) or ("ready" if self._listed else "starting")

    async def join(self) -> None:
        """Appear in discovery. Raises StartupError when another process has this instance's place."""
        try:
            there = (await self.endpoint.runtime.discovery.get_prefix(self._key)).get(self._key)
        except Exception as error:  # noqa: BLE001  # a store that is away is no reason not to serve
            _log.debug("%s could not be looked up: %s", self._key, error)
            there = None
        if there is not None:
            self._refuse_double(there)
        await self._list()

    def _refuse_double(self, there: bytes) -> None:
        own = self.instance
        try:
            other = msgspec.json.decode(there, type=Instance)
        except msgspec.MsgspecError:
            return
        if (other.address, other.host, other.pid) != (own.address, own.host, own.pid):
            where = f"{other.address} (process {other.pid} of {other.host})"
            raise StartupError(
                f"instance {own.instance_id:x} of {self.endpoint.path} is there already, at {where}: two processes have one id;"
                " start this one again"
            )

    def withhold(self, reason: str) -> None:
        """Before :meth:`join`: do not appear until ``reason`` was resumed."""
        self._suspended.add(reason)

    async def suspend(self, reason: str) -> None:
        """Leave discovery, go on serving what comes all the same. Holds until each reason was resumed."""
        self._suspended.add(reason)
        await self._list()

    async def resume(self, reason: str) -> None:
        self._suspended.discard(reason)
        await self._list()

    async def leave(self) -> None:
        """Leave discovery for good and refuse new requests; running ones go on."""
        if self._idle is None:
            runtime = self.endpoint.runtime
            # The plane first, within this turn: no request slips in while the store is slow.
            self._idle = asyncio.ensure_future(_awaited(runtime.request_plane.unserve(self.endpoint.path)))
            try:
                await self._list()
            except Exception as error:  # noqa: BLE001  # a store that is down must not keep this process from finishing
                _log.warning("%s could not be deleted from discovery, its lease will lapse: %s", self._key, error)

    async def close(self, grace: float | None = None) -> None:
        """Leave, wait for running requests (``grace`` seconds, ``None``: as long as they take; not at all unless graceful)."""
        if self.canary is not None:
            await self.canary.close()
        await self.leave()
        if self._idle is not None and not self._idle.done():
            if self.graceful:
                await asyncio.wait((self._idle,), timeout=grace)
            self._idle.cancel()
        self.endpoint.runtime.release(self)
        self._closed.set()

    async def closed(self) -> None:
        """Wait until :meth:`close` has done its work."""
        await self._closed.wait()

    async def _list(self) -> None:
        """Make discovery say what is true at this moment."""
        async with self._listing:
            discovery = self.endpoint.runtime.discovery
            if self.left or self._suspended:
                self._listed = False
                if self._was_put:  # else the key is nobody's, or another process's
                    await discovery.delete(self._key)
            else:
                self._was_put = True
                await discovery.put(self._key, msgspec.json.encode(self.instance))
                self._listed = True


async def _awaited(awaitable: Awaitable[None]) -> None:
    await awaitable
