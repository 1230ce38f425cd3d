"""The application behind the server's one socket, and its replacement while requests run."""

from __future__ import annotations

import asyncio

from litestar import Litestar
from litestar.enums import ScopeType
from litestar.types import Receive, Scope, Send

__all__ = ["AppSwitch", "Generation"]


class Generation:
    """One application and the requests that it has."""

    __slots__ = ("_idle", "app", "running")

    def __init__(self, app: Litestar) -> None:
        self.app = app
        self.running = 0
        self._idle: asyncio.Future[None] | None = None

    def left(self) -> None:
        self.running -= 1
        if self._idle is not None and not self.running and not self._idle.done():
            self._idle.set_result(None)

    async def idle(self, within: float) -> bool:
        """Wait, ``within`` seconds at most, until its last request has ended; it gets none any more. True if it has."""
        self._idle = asyncio.get_running_loop().create_future()
        if self.running:
            await asyncio.wait((self._idle,), timeout=within)
        return not self.running


class AppSwitch:
    """ASGI application that passes each request to the current one: a request ends where it began."""

    def __init__(self, app: Litestar) -> None:
        self._current = Generation(app)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        current = self._current
        if scope["type"] != ScopeType.HTTP:
            await current.app(scope, receive, send)
            return
        current.running += 1
        try:
            await current.app(scope, receive, send)
        finally:
            current.left()

    def swap(self, app: Litestar) -> Generation:
        """Every request from here on goes to ``app``. Returns what served until now."""
        earlier, self._current = self._current, Generation(app)
        return earlier
