"""A response as an async iterator, for callers that are not on the hot path."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Callable, Generator
from typing import Any

from dynamo_core.contracts.context import Context
from dynamo_core.contracts.planes import ClientStream, StreamReceiver
from dynamo_core.errors import Cancelled, DynamoError
from dynamo_core.runtime.annotated import Annotated

__all__ = ["ResponseStream"]

_PAUSE_ITEMS = 512
_RESUME_ITEMS = 128


class ResponseStream(AsyncIterator[Any]):
    """Yields the items; raises the stream's error, or :class:`~dynamo_core.errors.Cancelled` after the context was killed.

    Awaiting it returns itself, so that ``await client.generate(...)`` reads as it does for Dynamo. A stream that is closed or
    dropped before its end is killed at the server. A slow reader pauses the sender: about 1,500 items wait at most.
    """

    def __init__(self, open: Callable[[StreamReceiver], ClientStream], context: Context, *, annotated: bool) -> None:
        self.context = context
        self._annotated = annotated
        self._buffer = _Buffer()
        self._stream = open(self._buffer)
        self._buffer.stream = self._stream
        self._unlink = context.on_cancel(self._buffer.cancelled)

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
        self._unlink()
        if not self._buffer.done:
            self._stream.cancel(kill=True)
            self._buffer.on_end()

    def __del__(self) -> None:
        if hasattr(self, "_unlink"):
            with contextlib.suppress(RuntimeError):  # the loop is closed: so is the connection
                self._close()


class _Buffer:
    """The receiver. Apart from the stream, so that the plane's reference does not keep a dropped stream alive."""

    __slots__ = ("_error", "_items", "_paused", "_waiter", "done", "stream")

    def __init__(self) -> None:
        self.stream: ClientStream | None = None
        self.done = False
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
        self._wake()

    def on_error(self, error: DynamoError) -> None:
        self._error = error
        self.done = True
        self._wake()

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
