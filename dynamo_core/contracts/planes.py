"""How requests, streamed responses and events travel between processes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from dynamo_core.contracts.context import Context
from dynamo_core.contracts.discovery import Instance
from dynamo_core.errors import DynamoError

__all__ = [
    "ClientStream",
    "EventPlane",
    "EventSubscription",
    "RequestHandler",
    "RequestPlane",
    "ResponseSink",
    "StreamReceiver",
]


class StreamReceiver(Protocol):
    """The client's end of one stream. Called on the event loop, once a frame; must not block or raise."""

    def on_items(self, items: list[Any]) -> None:
        """Items that arrived together, oldest first. msgpack's own types."""
        ...

    def on_end(self) -> None:
        """The stream is complete. Nothing follows."""
        ...

    def on_error(self, error: DynamoError) -> None:
        """The stream failed; retriable errors mean that another instance may do it. Nothing follows."""
        ...


class ClientStream(Protocol):
    """What a caller holds of its open stream."""

    def cancel(self, *, kill: bool) -> None:
        """Stop (the stream still ends by itself) or kill (nothing more is delivered)."""
        ...

    def pause(self) -> None:
        """Take no more: credit is withheld and the sender stops this stream soon."""
        ...

    def resume(self) -> None: ...


class ResponseSink(Protocol):
    """The server's end of one stream. ``item`` never blocks; all that is written in one turn of the loop is one frame."""

    def item(self, value: Any) -> None: ...

    def end(self) -> None: ...

    def error(self, error: DynamoError) -> None: ...

    def ready(self) -> Awaitable[None]:
        """Wait until the peer has credit; a handler that can wait calls it between items."""
        ...


RequestHandler = Callable[[Any, Context, ResponseSink], None]
"""Called once a request on the event loop; must return at once and write to the sink then or later."""


class RequestPlane(Protocol):
    """One per process; both ends of it."""

    def serve(self, endpoint: str, handler: RequestHandler) -> Awaitable[str]:
        """Accept requests for ``ns.comp.ep``; returns the address to publish in discovery.

        All endpoints of a process share a listener.
        """
        ...

    def unserve(self, endpoint: str) -> Awaitable[None]:
        """Refuse new requests with :class:`~dynamo_core.errors.EngineShutdown` from the first step on; running ones go on, and
        the awaitable is done when the last of them has ended."""
        ...

    def open(self, instance: Instance, request: Any, context: Context, receiver: StreamReceiver) -> ClientStream:
        """Send a request. Never raises for the network: failures reach ``receiver.on_error``.

        Cancelling the context cancels the stream.
        """
        ...

    def connect(self, instance: Instance) -> Awaitable[None]:
        """Make sure that the instance's process answers. Raises :class:`~dynamo_core.errors.CannotConnect`."""
        ...

    def on_gone(self, callback: Callable[[str, str], None]) -> Callable[[], None]:
        """Call ``callback(address, endpoint)`` when the connection to a peer is lost (endpoint "") or the peer refuses further
        requests for one endpoint; before any receiver hears of it. Returns what unregisters it."""
        ...

    def close(self) -> Awaitable[None]:
        """End what runs with :class:`~dynamo_core.errors.EngineShutdown` and leave."""
        ...


class EventSubscription(Protocol):
    def close(self) -> None: ...


class EventPlane(Protocol):
    """Topics with many publishers and many subscribers, no memory."""

    def start(self) -> Awaitable[None]: ...

    def address(self) -> Awaitable[str]:
        """What to publish in discovery (``Instance.events``) so that others can subscribe. Asked only by processes that have
        something to tell: a plane may listen from here on."""
        ...

    def publish(self, topic: str, payload: bytes) -> None:
        """Never blocks; drops the oldest when nobody keeps up."""
        ...

    def subscribe(
        self, address: str, topic: str, callback: Callable[[bytes], None], on_lost: Callable[[], None] | None = None
    ) -> EventSubscription:
        """Call back with every payload of ``topic`` that ``address`` publishes, on the event loop, and ``on_lost`` whenever some
        before the next one are missing.

        Raises :class:`ValueError` for an address of another plane's.
        """
        ...

    def close(self) -> Awaitable[None]: ...
