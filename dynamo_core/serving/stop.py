"""Stop strings: where the text ends, although they may arrive in pieces."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["StopMatcher", "StopResult"]


class StopResult(NamedTuple):
    text: str
    """What may be shown."""
    matched: str | None
    """The stop string that ended the text; nothing more comes after it."""


class StopMatcher:
    """Looks for stop strings in one choice's text and holds back only what may be the beginning of one.

    The result does not depend on how the text is cut into pushes: the match that is complete first wins, and among those that
    end together the longest. Cost: a set test on text without a first letter of a stop string, else a search over the held text.
    """

    __slots__ = ("_beginnings", "_firsts", "_held", "_include", "_longest", "_matched", "_stops")

    def __init__(self, stops: tuple[str, ...], include: bool = False) -> None:
        self._stops = tuple(stop for stop in stops if stop)
        self._include = include
        self._firsts = frozenset(stop[0] for stop in self._stops)
        self._beginnings = frozenset(stop[:length] for stop in self._stops for length in range(1, len(stop)))
        self._longest = max((len(stop) for stop in self._stops), default=0) - 1
        self._held = ""
        self._matched: str | None = None

    def push(self, text: str) -> StopResult:
        if self._matched is not None:
            return StopResult("", self._matched)
        if not self._held and self._firsts.isdisjoint(text):
            return StopResult(text, None)
        text = self._held + text
        match = self._first_match(text)
        if match is not None:
            end, stop = match
            self._matched = stop
            self._held = ""
            return StopResult(text[: end if self._include else end - len(stop)], stop)
        shown = self._undecided(text)
        self._held = text[shown:]
        return StopResult(text[:shown], None)

    def flush(self) -> str:
        """The text that was held back, once it is sure that nothing more comes."""
        held, self._held = self._held, ""
        return held

    def _first_match(self, text: str) -> tuple[int, str] | None:
        """End and stop string of the match that is complete first."""
        best: tuple[int, str] | None = None
        for stop in self._stops:
            # A match that ends no later than the best one so far; at the same end the longer one is taken.
            start = text.find(stop, 0, None if best is None else best[0])
            if start >= 0 and (best is None or start + len(stop) < best[0] or len(stop) > len(best[1])):
                best = start + len(stop), stop
        return best

    def _undecided(self, text: str) -> int:
        """Where the longest ending begins that may grow into a stop string; the text's length if there is none."""
        for start in range(max(0, len(text) - self._longest), len(text)):
            if text[start] in self._firsts and text[start:] in self._beginnings:
                return start
        return len(text)
