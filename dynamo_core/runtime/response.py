"""A response as an async iterator, for callers that are not on the hot path."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Generator
from typing import Any

from dynamo_core.contracts.context import Context
from dynamo_core.contracts.planes import ClientStream, StreamReceiver
from dynamo_core.errors import Cancelled, DeadlineExceeded, DynamoError
from dynamo_core.runtime.annotated import Annotated

__all__ = ["ResponseStream"]

_PAUSE_ITEMS = 512
_RESUME_ITEMS = 128


class ResponseStream(AsyncIterator[Any]):
    """Yields the items; raises the stream's error, or :class:`~dynamo_core.errors.Cancelled` after the context was killed.

    Awaiting it returns itself, so that ``await client.generate(...)`` reads as it does for Dynamo. A stream that is closed or
    dropped before its end is killed at the server; one whose context has a deadline ends with
    :class:`~dynamo_core.errors.DeadlineExceeded` when it passes. A slow reader pauses the sender: about 1,500 items wait at most.
    """

    def __init__(self, open: Callable[[StreamReceiver], ClientStream], context: Context, *, annotated: bool) -> None:
        self.context = context
        self._annotated = annotated
        self._buffer = _Buffer()
        self._stream = open(self._buffer)
        self._buffer.stream = self._stream
        self._buffer.on_done.append(context.on_cancel(self._buffer.cancelled))
        if context.deadline is not None and not self._buffer.done:
            left = max(0.0, context.deadline - time.time())
            timer = asyncio.get_running_loop().call_later(left, self._buffer.expired)
            self._buffer.on_done.append(timer.cancel)

    def on_done(self, callback: Callable[[], object]) -> None:
        """Call it once, when nothing more arrives."""
        if self._buffer.done:
            callback()
        else:
            self._buffer.on_done.append(callback)

    def fail(self, error: DynamoError) -> None:
        """End with ``error`` after the items that have arrived, and kill the request at the server."""
        self._buffer.give_up(error)

    def __await__(self) -> Generator[Any, None, ResponseStream]:
        return self._itself().__await__()

    def __aiter__(self) -> ResponseStream:
        return self

    async def __anext__(self) -> Any:
        item = await self._buffer.take()
        return Annotated(item) if self._annotated else item

    async def aclose(self) -> None:
        self._close()

    async def _itself(self) -> ResponseStream:
        return self

    def _close(self) -> None:
        if not self._buffer.done:
            self._stream.cancel(kill=True)
            self._buffer.on_end()

    def __del__(self) -> None:
        if hasattr(self, "_stream"):
            with contextlib.suppress(RuntimeError):  # the loop is closed: so is the connection
                self._close()


class _Buffer:
    """The receiver. Apart from the stream, so that the plane's reference does not keep a dropped stream alive."""

    __slots__ = ("_error", "_items", "_paused", "_waiter", "done", "on_done", "stream")

    def __init__(self) -> None:
        self.stream: ClientStream | None = None
        self.done = False
        self.on_done: list[Callable[[], object]] = []
        self._items: deque[Any] = deque()
        self._error: DynamoError | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._paused = False

    def on_items(self, items: list[Any]) -> None:
        self._items.extend(items)
        if len(self._items) >= _PAUSE_ITEMS and not self._paused and self.stream is not None:
            self._paused = True
            self.stream.pause()
        self._wake()

    def on_end(self) -> None:
        self.done = True
        callbacks, self.on_done = self.on_done, []
        for callback in callbacks:
            callback()
        self._wake()

    def on_error(self, error: DynamoError) -> None:
        self._error = error
        self.on_end()

    def expired(self) -> None:
        self.give_up(DeadlineExceeded("the request's deadline passed before its stream was complete"))

    def give_up(self, error: DynamoError) -> None:
        if not self.done:
            if self.stream is not None:
                self.stream.cancel(kill=True)
            self.on_error(error)

    def cancelled(self, killed: bool) -> None:
        if killed and not self.done:
            self._items.clear()
            self.on_error(Cancelled("the request was killed"))

    async def take(self) -> Any:
        while not self._items:
            if self.done:
                error, self._error = self._error, None
                if error is not None:
                    raise error
                raise StopAsyncIteration
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        item = self._items.popleft()
        if self._paused and len(self._items) <= _RESUME_ITEMS and self.stream is not None:
            self._paused = False
            self.stream.resume()
        return item

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
