"""How the bytes of one response reach the server: stepped by hand from the callback that made them, or by the response's task.

Both take everything at once and hold it back while the client is slow; they tell the generation to pause meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from litestar.types import Receive, Send

from dynamo_core.http.exchange import Exchange

__all__ = ["DirectWriter", "ReceiveWatch", "TaskWriter", "Writer"]

_log = logging.getLogger(__name__)

Headers = tuple[tuple[bytes, bytes], ...]


class Writer(Protocol):
    """``start`` once, ``write`` as often as there is something, ``end`` once. None of them blocks or raises."""

    started: bool
    on_pause: Callable[[], None] | None
    on_resume: Callable[[], None] | None

    def start(self, headers: Headers) -> None:
        """Status 200 and these headers."""

    def write(self, body: bytes) -> None: ...

    def end(self, body: bytes) -> None: ...

    async def serve(self, done: asyncio.Future[Any]) -> None:
        """Return when ``done`` is and everything was handed to the server. Awaited by the response's task."""


class DirectWriter:
    """Steps the server's ``send`` coroutine from whatever callback has something to write: no task runs for a token.

    uvicorn's ``send`` writes to the transport and returns without suspending, unless the transport is over its high-water mark:
    then it yields a future, and the rest waits for that.
    """

    __slots__ = (
        "_coroutine",
        "_drained",
        "_exchange",
        "_final",
        "_held",
        "_on_broken",
        "_send",
        "on_pause",
        "on_resume",
        "started",
    )

    def __init__(self, exchange: Exchange, on_broken: Callable[[], None]) -> None:
        self._exchange = exchange
        self._send: Any = exchange.send
        self._on_broken = on_broken
        self._coroutine: Coroutine[Any, Any, None] | None = None
        self._held: list[bytes] = []
        self._final = False
        self._drained: asyncio.Future[None] | None = None
        self.started = False
        self.on_pause: Callable[[], None] | None = None
        self.on_resume: Callable[[], None] | None = None

    def start(self, headers: Headers) -> None:
        self.started = True
        self._exchange.status = 200
        self._emit({"type": "http.response.start", "status": 200, "headers": [*headers, *self._exchange.own_headers()]})

    def write(self, body: bytes) -> None:
        if self._coroutine is not None:
            self._held.append(body)
        elif (
            not self._step(self._send({"type": "http.response.body", "body": body, "more_body": True}))
            and self.on_pause is not None
        ):
            self.on_pause()

    def end(self, body: bytes) -> None:
        if self._coroutine is not None:
            self._held.append(body)
            self._final = True
        else:
            self._emit({"type": "http.response.body", "body": body, "more_body": False})

    async def serve(self, done: asyncio.Future[Any]) -> None:
        await done
        if self._coroutine is not None:
            self._drained = asyncio.get_running_loop().create_future()
            await self._drained

    def _emit(self, message: dict[str, Any]) -> None:
        if not self._step(self._send(message)) and self.on_pause is not None:
            self.on_pause()

    def _step(self, coroutine: Coroutine[Any, Any, None]) -> bool:
        """Run the coroutine to its end (True), or to where it waits (False)."""
        try:
            waiting = coroutine.send(None)
        except StopIteration:
            return True
        except Exception:  # noqa: BLE001  # whatever it is, it must not reach the other streams of this frame
            _log.exception("request %s: the response could not be written", self._exchange.id)
            self._send = _discard
            asyncio.get_running_loop().call_soon(self._on_broken)
            return True
        self._coroutine = coroutine
        if waiting is None:
            asyncio.get_running_loop().call_soon(self._continue)
        else:
            waiting.add_done_callback(self._continue)
        return False

    def _continue(self, _: Any = None) -> None:
        coroutine, self._coroutine = self._coroutine, None
        if coroutine is not None and not self._step(coroutine):
            return
        if self._held:
            body, final = b"".join(self._held), self._final
            self._held.clear()
            if not self._step(self._send({"type": "http.response.body", "body": body, "more_body": not final})):
                return
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)
        if self.on_resume is not None:
            self.on_resume()


async def _discard(message: dict[str, Any]) -> None:
    """For what comes after the response broke."""


class TaskWriter:
    """The response's own task awaits ``send``: for middleware that wraps it and may expect a task around it."""

    __slots__ = ("_final", "_held", "_held_bytes", "_paused", "_send", "_start", "_wake", "on_pause", "on_resume", "started")

    _LIMIT = 65536
    """Bytes held back before the generation is asked to pause."""

    def __init__(self, send: Send) -> None:
        self._send: Any = send
        self._start: dict[str, Any] | None = None
        self._held: list[bytes] = []
        self._held_bytes = 0
        self._final = False
        self._paused = False
        self._wake: asyncio.Future[None] | None = None
        self.started = False
        self.on_pause: Callable[[], None] | None = None
        self.on_resume: Callable[[], None] | None = None

    def start(self, headers: Headers) -> None:
        self.started = True
        self._start = {"type": "http.response.start", "status": 200, "headers": list(headers)}

    def write(self, body: bytes) -> None:
        self._held.append(body)
        self._held_bytes += len(body)
        self._wake_up()
        if self._held_bytes > self._LIMIT and not self._paused and self.on_pause is not None:
            self._paused = True
            self.on_pause()

    def end(self, body: bytes) -> None:
        self._held.append(body)
        self._final = True
        self._wake_up()

    async def serve(self, done: asyncio.Future[Any]) -> None:
        done.add_done_callback(self._wake_up)
        while True:
            if not self._held:
                if done.done():
                    return
                self._wake = asyncio.get_running_loop().create_future()
                await self._wake
                continue
            if self._start is not None:
                start, self._start = self._start, None
                await self._send(start)
            body, final = b"".join(self._held), self._final
            self._held.clear()
            self._held_bytes = 0
            await self._send({"type": "http.response.body", "body": body, "more_body": not final})
            if self._paused and not self._held and self.on_resume is not None:
                self._paused = False
                self.on_resume()

    def _wake_up(self, _: Any = None) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)


class ReceiveWatch:
    """Calls back when the client leaves: steps ``receive`` by hand, without a task."""

    __slots__ = ("_coroutine", "_on_left", "_receive")

    def __init__(self, receive: Receive, on_left: Callable[[], None]) -> None:
        self._receive: Any = receive
        self._on_left = on_left
        self._coroutine: Coroutine[Any, Any, Any] | None = receive()  # type: ignore[assignment]  # it is a coroutine
        self._step()

    def close(self) -> None:
        coroutine, self._coroutine = self._coroutine, None
        if coroutine is not None:
            coroutine.close()

    def _step(self, _: Any = None) -> None:
        while self._coroutine is not None:
            try:
                waiting = self._coroutine.send(None)
            except StopIteration as stop:
                if stop.value["type"] == "http.disconnect":
                    self._coroutine = None
                    self._on_left()
                else:
                    self._coroutine = self._receive()
                continue
            if waiting is None:
                asyncio.get_running_loop().call_soon(self._step)
            else:
                waiting.add_done_callback(self._step)
            return
