"""When the absence of a key means that its holder left."""

from __future__ import annotations

import asyncio
import time

__all__ = ["Trust"]


class Trust:
    """A store that was out of reach, restarted or stood still has lost keys whose holders live: their leases lapsed, or its
    disk was wiped. They put their keys again when it is back; until ``grace`` seconds after it is back, no absence is believed.
    """

    def __init__(self, grace: float) -> None:
        self._grace = grace
        self._loop = asyncio.get_running_loop()
        self._out = False
        self._since = 0.0
        self._from = 0.0
        self._back = asyncio.Event()
        self._back.set()

    @property
    def out(self) -> bool:
        """Nobody can say at the moment."""
        return self._out

    @property
    def out_since(self) -> float | None:
        """Monotonic time."""
        return self._since if self._out else None

    @property
    def good(self) -> bool:
        return not self._out and self._loop.time() >= self._from

    def lost(self) -> bool:
        """The store is out of reach. True when that is news."""
        news, self._out = not self._out, True
        if news:
            self._since = time.monotonic()
        self._back.clear()
        return news

    def shaken(self) -> None:
        """A connection broke: the store may have restarted."""
        self._from = self._loop.time() + self._grace

    def regained(self) -> bool:
        """The store answers. True when that is news."""
        news, self._out = self._out, False
        if news:
            self.shaken()
            self._back.set()
        return news

    async def restored(self) -> None:
        """Wait until absences are believed."""
        while not self.good:
            await self._back.wait()
            await asyncio.sleep(max(0.0, self._from - self._loop.time()))
