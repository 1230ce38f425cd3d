"""Workers that joined others at work: in the end each gets a prompt that others have cached and it has not.

Priced by its cost alone it might never get one: while the others are nearly idle, computing what they have cached never pays.
But a worker without a cache is of no use when they are busy. So the time for which it waited for a request counts, at a
discount, as time in which it computed what the others have cached. Small differences are made up for first: as a rule the
newcomer gets a prompt whose beginning many share, not somebody's long conversation. Each frontend does this once for each worker,
whatever the traffic; from there on caches and loads decide. A worker that comes with a cache is none: it was only out of sight.
"""

from __future__ import annotations

from collections.abc import Sequence

from dynamo_kv_router.load import PlaceLoad

__all__ = ["Newcomers"]


class Newcomers:
    """True while there are any."""

    def __init__(self, welcome: float) -> None:
        self._welcome = welcome
        self._waiting: dict[PlaceLoad, float] = {}
        """Since when, in milliseconds on the router's clock."""

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def joined(self, places: Sequence[PlaceLoad], now: float) -> None:
        """Others were sent requests before."""
        self._waiting.update(dict.fromkeys(places, now))

    def left(self, places: Sequence[PlaceLoad]) -> None:
        """They are newcomers no longer."""
        for place in places:
            self._waiting.pop(place, None)

    def priced(self, new: Sequence[float], candidates: Sequence[PlaceLoad], token_ms: float, now: float) -> list[float]:
        """By place, the new tokens that a price is made of; a newcomer never has fewer than the best of the candidates."""
        least = min(new[place.place] for place in candidates)
        priced = list(new)
        for place, since in self._waiting.items():
            if priced[place.place] > least:
                computed = self._welcome * (now - since) / token_ms
                priced[place.place] = max(least, priced[place.place] - computed)
        return priced

    def sent(self, place: PlaceLoad, now: float) -> None:
        """It got a request, of whatever frontend: it waits anew."""
        if place in self._waiting:
            self._waiting[place] = now

    def welcomed(self, place: PlaceLoad, new: Sequence[float]) -> None:
        """It got one of ours; if another place has more of it cached, that was what it waited for."""
        if place in self._waiting and new[place.place] > min(new):
            del self._waiting[place]
