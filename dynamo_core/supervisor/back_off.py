"""Pauses between the lives of a process."""

from __future__ import annotations

__all__ = ["BackOff"]


class BackOff:
    """First pause, doubling to the longest; a life of ``healthy`` seconds starts over. All in seconds."""

    def __init__(self, *, first: float = 0.5, longest: float = 30.0, healthy: float = 60.0) -> None:
        self._first = first
        self._longest = longest
        self._healthy = healthy
        self._next = first

    def pause(self, lived: float) -> float:
        """How long to wait after a life of ``lived`` seconds ended unexpectedly."""
        if lived >= self._healthy:
            self._next = self._first
        pause = self._next
        self._next = min(self._longest, pause * 2)
        return pause
