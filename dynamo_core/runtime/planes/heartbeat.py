"""Whether the other side of a connection still answers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec

__all__ = ["Beat", "Heartbeat"]


class Beat(msgspec.Struct, frozen=True):
    """How a connection asks after its peer."""

    seconds: float
    """Between two questions."""
    missed: int
    """Beats in a row without an answer after which the peer is taken as lost."""


class Heartbeat:
    """Asks at every beat unless an answer is due, and gives up after ``missed`` beats without one.

    It wants an answer to its own question: a network that carries bytes in one direction only still brings what the peer sends.
    Beats are counted, not seconds, so that a process whose own loop stood still does not blame its peers for it.
    """

    __slots__ = ("_ask", "_beat", "_due", "_give_up", "_loop", "_timer")

    def __init__(self, beat: Beat, ask: Callable[[], None], give_up: Callable[[str], None]) -> None:
        self._beat = beat
        self._ask = ask
        self._give_up = give_up
        self._due = 0
        """Beats since the question that is open; 0: none is."""
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(beat.seconds, self._tick)

    def answered(self) -> None:
        self._due = 0

    def stop(self) -> None:
        self._timer.cancel()

    def _tick(self) -> None:
        beat = self._beat
        if self._due >= beat.missed:
            self._give_up(f"it did not answer for {beat.missed * beat.seconds:g} s")
            return
        if not self._due:
            self._ask()
        self._due += 1
        self._timer = self._loop.call_later(beat.seconds, self._tick)
