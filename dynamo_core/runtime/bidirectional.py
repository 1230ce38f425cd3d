"""Endpoints whose requests are streams, too.

The response is an ordinary stream. What the caller sends meanwhile goes as small unary requests to a second endpoint of the same
instance, ``<endpoint>--input``, each answered once the handler's buffer has room: order and back-pressure on every request
plane, and no connection from the server to the caller.
"""

from __future__ import annotations

import asyncio
import uuid
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Callable
from typing import Any

import msgspec

from dynamo_core.contracts.context import Context
from dynamo_core.contracts.discovery import Instance
from dynamo_core.contracts.planes import RequestPlane, ResponseSink
from dynamo_core.errors import Cancelled, DynamoError, EngineError, InvalidRequest
from dynamo_core.runtime.handler import GeneratorHandler
from dynamo_core.runtime.response import ResponseStream

__all__ = ["BidirectionalHandler", "RequestStream", "bidirectional_stream", "input_endpoint"]

_BUFFERED_ITEMS = 64
_UNCLAIMED_SECONDS = 10.0


def input_endpoint(name: str) -> str:
    return f"{name}--input"


class _Opening(msgspec.Struct):
    """The request that opens a bidirectional stream."""

    input: str


class _Input(msgspec.Struct):
    stream: str
    items: list[Any] = []
    last: bool = False


class RequestStream(AsyncIterator[Any]):
    """What the caller sends. Its end means that the caller has said everything, not that it listens no longer."""

    def __init__(self) -> None:
        self._items: deque[Any] = deque()
        self._changed = asyncio.Event()
        self._waiting: deque[ResponseSink] = deque()
        self._over = False

    def __aiter__(self) -> RequestStream:
        return self

    async def __anext__(self) -> Any:
        while not self._items:
            if self._over:
                raise StopAsyncIteration
            self._changed.clear()
            await self._changed.wait()
        item = self._items.popleft()
        while self._waiting and len(self._items) < _BUFFERED_ITEMS:
            self._waiting.popleft().end()
        return item

    def feed(self, items: list[Any], last: bool, sink: ResponseSink) -> None:
        self._items.extend(items)
        self._over = self._over or last
        self._changed.set()
        if len(self._items) < _BUFFERED_ITEMS:
            sink.end()
        else:
            self._waiting.append(sink)

    def close(self, error: DynamoError) -> None:
        """Nobody reads any more."""
        self._over = True
        self._changed.set()
        while self._waiting:
            self._waiting.popleft().error(error)


class BidirectionalHandler:
    """``handle`` serves the endpoint, ``take_input`` its input endpoint. ``generator`` runs ``function(stream[, context])``."""

    def __init__(self, generator: GeneratorHandler) -> None:
        self._generator = generator
        self._streams: dict[str, RequestStream] = {}
        self._unclaimed: dict[str, asyncio.TimerHandle] = {}

    def handle(self, request: Any, context: Context, sink: ResponseSink) -> None:
        try:
            token = msgspec.convert(request, _Opening).input
        except msgspec.ValidationError:
            raise InvalidRequest("this endpoint takes a stream of requests: call it by client.bidirectional()") from None
        stream = self._stream(token)
        timer = self._unclaimed.pop(token, None)
        if timer is not None:
            timer.cancel()
        self._generator(stream, context, _ClosingSink(sink, lambda: self._drop(token)))

    def take_input(self, request: Any, context: Context, sink: ResponseSink) -> None:
        del context
        try:
            message = msgspec.convert(request, _Input)
        except msgspec.ValidationError as error:
            raise InvalidRequest(f"this is no part of a stream of requests: {error}") from None
        known = message.stream in self._streams
        stream = self._stream(message.stream)
        if not known:  # overtook the request that opens the stream, or comes after its end
            loop = asyncio.get_running_loop()
            self._unclaimed[message.stream] = loop.call_later(_UNCLAIMED_SECONDS, self._drop, message.stream)
        stream.feed(message.items, message.last, sink)

    def close(self) -> None:
        for token in tuple(self._streams):
            self._drop(token)

    def _stream(self, token: str) -> RequestStream:
        stream = self._streams.get(token)
        if stream is None:
            stream = self._streams[token] = RequestStream()
        return stream

    def _drop(self, token: str) -> None:
        timer = self._unclaimed.pop(token, None)
        if timer is not None:
            timer.cancel()
        stream = self._streams.pop(token, None)
        if stream is not None:
            stream.close(Cancelled("the stream that this belongs to is over"))


class _ClosingSink:
    __slots__ = ("_closed", "_sink", "item", "ready")

    def __init__(self, sink: ResponseSink, closed: Callable[[], None]) -> None:
        self._sink = sink
        self._closed = closed
        self.item = sink.item
        self.ready = sink.ready

    def end(self) -> None:
        self._closed()
        self._sink.end()

    def error(self, error: DynamoError) -> None:
        self._closed()
        self._sink.error(error)


def bidirectional_stream(
    plane: RequestPlane, instance: Instance, requests: AsyncIterable[Any], context: Context, *, annotated: bool
) -> ResponseStream:
    """The response; a task of its own sends ``requests`` and ends with it."""
    token = uuid.uuid4().hex
    stream = ResponseStream(
        lambda receiver: plane.open(instance, {"input": token}, context, receiver), context, annotated=annotated
    )
    target = msgspec.structs.replace(instance, endpoint=input_endpoint(instance.endpoint))

    async def send(items: list[Any], last: bool) -> None:
        message = {"stream": token, "items": items, "last": last}
        sent = Context(trace_headers=context.trace_headers)
        async for _ in ResponseStream(lambda receiver: plane.open(target, message, sent, receiver), sent, annotated=False):
            pass

    async def pump() -> None:
        try:
            async for item in requests:
                await send([item], last=False)
            await send([], last=True)
        except DynamoError as error:
            stream.fail(error)
        except Exception as error:  # noqa: BLE001  # the caller's own iterator; it reads the response and must hear of it
            stream.fail(EngineError(f"the requests of a bidirectional stream ended with {type(error).__name__}: {error}"))

    task = asyncio.create_task(pump())
    stream.on_done(task.cancel)
    return stream
