"""uvicorn's protocol, with one difference: the head of a response and the first piece of its body leave in one system call."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

__all__ = ["HeadJoiner", "HttpProtocol"]


class HeadJoiner:
    """Stands before a transport, which would write at once: a head waits for what follows it, until the turn ends at the latest.

    After the head, ``write`` is the transport's own, so a streamed token costs nothing here.
    """

    __slots__ = ("_head", "_loop", "_transport", "write")

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._head = b""
        self.write: Callable[[bytes], None] = self._hold

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def expect_head(self) -> None:
        """The next thing that is written begins a response."""
        self.write = self._hold

    def close(self) -> None:
        self._let_go()
        self._transport.close()

    def part(self) -> None:
        """The connection is gone."""
        self.write = self._transport.write  # a bound method of its own would be a circle

    def _hold(self, head: bytes) -> None:
        self._head = head
        self.write = self._join
        self._loop.call_soon(self._let_go)

    def _join(self, data: bytes) -> None:
        head, self._head = self._head, b""
        self.write = self._transport.write
        self.write(head + data)

    def _let_go(self) -> None:
        if self._head:
            self._join(b"")


class HttpProtocol(HttpToolsProtocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(cast("asyncio.Transport", HeadJoiner(cast("asyncio.Transport", transport), self.loop)))

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        cast("HeadJoiner", self.transport).part()

    def on_response_complete(self) -> None:
        cast("HeadJoiner", self.transport).expect_head()
        super().on_response_complete()
