"""Plugin ``request-plane``: events over the request plane. A subscription is a stream that the publisher's process serves.

What a turn of the loop publishes leaves in one frame with the responses of that turn, over the connection that the subscriber has
for its requests: no further port, no further thread, the same TLS, and nobody is woken twice. The first item of a stream, and the
one after a loss, is the number of the next payload, counted from 0 by topic; all others are payloads.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Iterable
from typing import Any

from dynamo_core.contracts import ClientStream, Context, Instance, RequestPlane, ResponseSink
from dynamo_core.errors import DynamoError, InvalidRequest, StartupError
from dynamo_core.hookspecs import hookimpl
from dynamo_core.specs import EventPlaneSpec, PlaneContext

__all__ = ["EVENTS_ENDPOINT", "RequestPlaneEvents", "dynamo_event_planes"]

_log = logging.getLogger(__name__)

_PLACE = ("dynamo", "events", "+subscribe")
"""Namespace, component and endpoint: the same in every process, and none that a program can serve."""
EVENTS_ENDPOINT = ".".join(_PLACE)
_LOOK = 512
"""Payloads after which it is seen whether a subscriber keeps up."""
_QUEUE = 16_384
"""Payloads kept for one that does not; what comes after them is dropped, and it is told."""
_RETRY_SECONDS = 0.1
_MOST_RETRY_SECONDS = 1.0
_HEX = re.compile(r"[0-9a-f]{1,16}")


class RequestPlaneEvents:
    """``plane`` is the process's own. Everything belongs to the loop's thread."""

    def __init__(self, plane: RequestPlane, instance_id: int) -> None:
        self._plane = plane
        self._id = instance_id
        self._counts: dict[str, int] = {}
        self._subscribers: dict[str, dict[_Subscriber, None]] = {}
        self._subscriptions: set[_Subscription] = set()

    async def start(self) -> None:
        """Nothing to do: a process that only calls others need not listen."""

    async def address(self) -> str:
        return f"{self._id:x}@{await self._plane.serve(EVENTS_ENDPOINT, self._subscribed)}"

    def publish(self, topic: str, payload: bytes) -> None:
        self._counts[topic] = following = self._counts.get(topic, 0) + 1
        for subscriber in self._subscribers.get(topic, ()):
            subscriber.send(payload, following)

    def subscribe(
        self, address: str, topic: str, callback: Callable[[bytes], None], on_lost: Callable[[], None] | None = None
    ) -> _Subscription:
        number, _, where = address.partition("@")
        if not where or not _HEX.fullmatch(number):
            raise ValueError(f"{address!r} is no address of the event plane request-plane")
        namespace, component, endpoint = _PLACE
        instance = Instance(
            instance_id=int(number, 16), namespace=namespace, component=component, endpoint=endpoint, address=where
        )
        subscription = _Subscription(self._plane, instance, topic, callback, on_lost, self._subscriptions.discard)
        self._subscriptions.add(subscription)
        subscription.open()
        return subscription

    async def close(self) -> None:
        for subscription in tuple(self._subscriptions):
            subscription.close()
        subscribers = [subscriber for those in self._subscribers.values() for subscriber in those]
        self._subscribers.clear()
        await asyncio.gather(*(subscriber.close() for subscriber in subscribers))

    def _subscribed(self, request: Any, context: Context, sink: ResponseSink) -> None:
        """The handler of the endpoint; ``request`` is the topic."""
        if not isinstance(request, str):
            sink.error(InvalidRequest("A subscription names a topic."))
            return
        subscribers = self._subscribers.setdefault(request, {})
        subscriber = _Subscriber(sink, self._counts.get(request, 0))
        subscribers[subscriber] = None

        def gone(killed: bool) -> None:
            del killed
            subscriber.end()
            subscribers.pop(subscriber, None)
            if not subscribers and self._subscribers.get(request) is subscribers:
                del self._subscribers[request]

        context.on_cancel(gone)


class _Subscriber:
    """The serving end of one subscription."""

    __slots__ = ("_following", "_full", "_look", "_sent", "_sink")

    def __init__(self, sink: ResponseSink, following: int) -> None:
        self._sink = sink
        self._following = following
        self._sent = 0
        """Since it was last seen to keep up."""
        self._look: asyncio.Task[None] | None = None
        self._full = False
        sink.item(following)

    def send(self, payload: bytes, following: int) -> None:
        self._following = following
        if self._full:
            return
        self._sink.item(payload)
        self._sent += 1
        if self._sent >= _LOOK:
            if self._look is None:
                self._look = asyncio.create_task(self._until_it_keeps_up())
            self._full = self._sent >= _QUEUE

    def end(self) -> None:
        if self._look is not None:
            self._look.cancel()
        self._sink.end()

    async def close(self) -> None:
        self.end()
        if self._look is not None:
            await asyncio.gather(self._look, return_exceptions=True)

    async def _until_it_keeps_up(self) -> None:
        await self._sink.ready()
        self._look, self._sent = None, 0
        if self._full:
            self._full = False
            self._sink.item(self._following)


class _Subscription:
    """The calling end: opened again whenever it ends, until it is closed."""

    def __init__(
        self,
        plane: RequestPlane,
        instance: Instance,
        topic: str,
        callback: Callable[[bytes], None],
        on_lost: Callable[[], None] | None,
        forget: Callable[[_Subscription], object],
    ) -> None:
        self._plane = plane
        self._instance = instance
        self._topic = topic
        self._callback = callback
        self._on_lost = on_lost
        self._forget = forget
        self._loop = asyncio.get_running_loop()
        self._stream: ClientStream | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._pause = _RETRY_SECONDS
        self._expected = 0
        self._closed = False

    def open(self) -> None:
        self._timer = None
        self._stream = self._plane.open(self._instance, self._topic, Context(), self)

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._forget(self)
        if self._timer is not None:
            self._timer.cancel()
        if self._stream is not None:
            self._stream.cancel(kill=True)

    # --- what the stream tells -----------------------------------------------------------------------------------------------

    def on_items(self, items: list[Any]) -> None:
        for item in items:
            if self._closed:
                return
            try:
                if isinstance(item, int):
                    self._goes_on_with(item)
                elif isinstance(item, bytes):
                    self._expected += 1
                    self._callback(item)
            except Exception:  # noqa: BLE001  # one subscriber's bug must not reach the others
                _log.exception("a subscriber of topic %s failed", self._topic)

    def on_end(self) -> None:
        self._again()

    def on_error(self, error: DynamoError) -> None:
        _log.debug("the events %s of %s have ended: %s", self._topic, self._instance.address, error.message)
        self._again()

    def _goes_on_with(self, number: int) -> None:
        self._pause = _RETRY_SECONDS
        expected, self._expected = self._expected, number
        if number != expected and self._on_lost is not None:
            self._on_lost()

    def _again(self) -> None:
        self._stream = None
        if not self._closed:
            self._timer = self._loop.call_later(self._pause, self.open)
            self._pause = min(2 * self._pause, _MOST_RETRY_SECONDS)


def _made(config: object, context: PlaneContext) -> RequestPlaneEvents:
    del config
    if context.request_plane is None:
        raise StartupError("the event plane request-plane was asked for where there is no request plane")
    return RequestPlaneEvents(context.request_plane, context.instance_id)


@hookimpl
def dynamo_event_planes() -> Iterable[EventPlaneSpec]:
    yield EventPlaneSpec(
        name="request-plane", factory=_made, description="Over the connections of the request plane: no port of their own."
    )
