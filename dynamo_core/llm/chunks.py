"""One sequence of a dispatcher, for a caller that iterates."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec

from dynamo_core.errors import DynamoError
from dynamo_core.serving.sequence import Sequence
from dynamo_core.serving.wire import decode_chunk

__all__ = ["Chunks"]


class Chunks:
    """The receiver of ``sequence``, which is set before anything arrives. With a ``limit`` the worker is held back while so many
    chunks wait for the caller; 0: while one does."""

    sequence: Sequence

    def __init__(self, limit: int | None = None) -> None:
        self.generated: list[int] = []
        self.on_items: Callable[[list[Any]], None] = self._items
        self._chunks: deque[dict[str, Any]] = deque()
        self._limit = limit
        self._paused = False
        self._error: DynamoError | None = None
        self._over = False
        self._changed = asyncio.Event()

    def on_routed(self, worker_id: int) -> None:
        del worker_id

    def on_error(self, error: DynamoError) -> None:
        self._error = error
        self._over = True
        self._changed.set()

    async def stream(self) -> AsyncIterator[dict[str, Any]]:
        try:
            while True:
                while self._chunks:
                    yield self._chunks.popleft()
                self._hold()
                if self._error is not None:
                    raise self._error
                if self._over:
                    return
                self._changed.clear()
                await self._changed.wait()
        finally:
            with contextlib.suppress(RuntimeError):  # the loop is closed: so are the streams
                self.sequence.cut("cancelled")

    def _items(self, items: list[Any]) -> None:
        for item in items:
            if self._over:
                return
            chunk = {"token_ids": [item]} if isinstance(item, int) else msgspec.to_builtins(decode_chunk(item))
            chunk.setdefault("token_ids", [])
            self.generated.extend(chunk["token_ids"])
            self._chunks.append(chunk)
            if chunk.get("finish_reason") is not None:
                self._over = True
                self.sequence.complete()
        self._hold()
        self._changed.set()

    def _hold(self) -> None:
        """Have the worker wait for the caller, or go on."""
        full = self._limit is not None and len(self._chunks) > self._limit
        if full != self._paused and not self._over:
            self._paused = full
            if full:
                self.sequence.pause()
            else:
                self.sequence.resume()
