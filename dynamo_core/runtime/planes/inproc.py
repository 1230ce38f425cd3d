"""Plugin ``inproc``: request and event plane within one process.

The request plane speaks the same frames as ``tcp`` over a pair of buffers, so that credit, cancellation, encoding and order
are the same. Runtimes of one process see each other when they are given planes of one :class:`InprocHub`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import Any, cast

from dynamo_core.hookspecs import hookimpl
from dynamo_core.runtime.planes.client import ClientConnection
from dynamo_core.runtime.planes.multiplex import MultiplexPlane
from dynamo_core.runtime.planes.server import ServerConnection
from dynamo_core.specs import EventPlaneSpec, PlaneContext, RequestPlaneSpec

__all__ = ["InprocEvents", "InprocHub", "InprocPlane", "dynamo_event_planes", "dynamo_request_planes"]

_log = logging.getLogger(__name__)


class InprocHub:
    """Where the planes of one process find each other."""

    def __init__(self) -> None:
        self.listeners: dict[str, Callable[[], ServerConnection]] = {}
        self.subscriptions: dict[tuple[str, str], list[_Subscription]] = {}


class InprocPlane(MultiplexPlane):
    def __init__(self, context: PlaneContext, hub: InprocHub | None = None) -> None:
        super().__init__(context.instance_id)
        self._name = f"inproc:{context.instance_id:x}"
        self._hub = hub or InprocHub()

    async def _listen(self, accept: Callable[[], ServerConnection]) -> str:
        self._hub.listeners[self._name] = accept
        return self._name

    async def _dial(self, address: str, connection: ClientConnection) -> None:
        accept = self._hub.listeners.get(address)
        if accept is None:
            raise ConnectionRefusedError("nobody in this process has this address")
        server = accept()
        here, there = _Pipe(connection), _Pipe(server)
        here.peer, there.peer = there, here
        server.connection_made(there)
        connection.connection_made(here)

    async def _stop_listening(self) -> None:
        self._hub.listeners.pop(self._name, None)


class _Pipe(asyncio.Transport):
    """One direction's writer: what is written arrives at the peer's protocol in a later callback."""

    def __init__(self, protocol: asyncio.Protocol) -> None:
        super().__init__()
        self.peer: _Pipe | None = None
        self._protocol = protocol
        self._loop = asyncio.get_running_loop()
        self._closing = False

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        if self.peer is not None and not self._closing:
            self._loop.call_soon(self.peer.deliver, bytes(data))

    def deliver(self, data: bytes) -> None:
        if not self._closing:
            self._protocol.data_received(data)

    def is_closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        if not self._closing:
            self._closing = True
            self._loop.call_soon(self._protocol.connection_lost, None)
            if self.peer is not None:
                self._loop.call_soon(self.peer.close)

    def abort(self) -> None:
        self.close()


class InprocEvents:
    """Event plane: callbacks of the loop, nothing is lost."""

    def __init__(self, context: PlaneContext, hub: InprocHub | None = None) -> None:
        self._address = f"inproc:{context.instance_id:x}"
        self._hub = hub or InprocHub()
        self._loop: asyncio.AbstractEventLoop | None = None

    async def start(self) -> None:
        self._loop = asyncio.get_running_loop()

    async def address(self) -> str:
        return self._address

    def publish(self, topic: str, payload: bytes) -> None:
        for subscription in self._hub.subscriptions.get((self._address, topic), ()):
            cast("asyncio.AbstractEventLoop", self._loop).call_soon(subscription.deliver, payload)

    def subscribe(
        self, address: str, topic: str, callback: Callable[[bytes], None], on_lost: Callable[[], None] | None = None
    ) -> _Subscription:
        del on_lost  # nothing is ever lost
        subscriptions = self._hub.subscriptions.setdefault((address, topic), [])
        subscription = _Subscription(callback, subscriptions)
        subscriptions.append(subscription)
        return subscription

    async def close(self) -> None:
        for key in [key for key in self._hub.subscriptions if key[0] == self._address]:
            del self._hub.subscriptions[key]


class _Subscription:
    def __init__(self, callback: Callable[[bytes], None], siblings: list[_Subscription]) -> None:
        self._callback: Callable[[bytes], None] | None = callback
        self._siblings = siblings

    def deliver(self, payload: bytes) -> None:
        if self._callback is not None:
            try:
                self._callback(payload)
            except Exception:  # noqa: BLE001  # one subscriber's bug must not reach the others
                _log.exception("a subscriber failed")

    def close(self) -> None:
        self._callback = None
        if self in self._siblings:
            self._siblings.remove(self)


@hookimpl
def dynamo_request_planes() -> Iterable[RequestPlaneSpec]:
    yield RequestPlaneSpec(
        name="inproc", factory=lambda _config, context: InprocPlane(context), description="Within one process."
    )


@hookimpl
def dynamo_event_planes() -> Iterable[EventPlaneSpec]:
    yield EventPlaneSpec(name="inproc", factory=lambda _config, context: InprocEvents(context), description="Within one process.")
