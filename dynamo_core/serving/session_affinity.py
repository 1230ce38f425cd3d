"""Which worker a session was on, so that its next request goes there, whichever frontend gets it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Literal, TypeAlias

import msgspec

from dynamo_core.contracts import RouteRequest, WorkerView

__all__ = ["AffinityMode", "SessionAffinity", "SessionPlace"]

AffinityMode: TypeAlias = Literal["hard", "soft"]

_LIMIT = 100_000
"""Sessions remembered of one model; those used longest ago go first."""
_OVER_MEAN = 1.25
"""A worker with more requests than this share of the mean, and two more than the mean, is too busy for a soft session."""


class SessionPlace(msgspec.Struct, frozen=True, array_like=True):
    """A session's worker, as frontends tell each other."""

    session: str
    worker_id: int
    move: int
    """Counts the session's moves from one worker to another. The later move is right; of two that are equal, the earlier
    ``since``, so that frontends that placed a session at the same time come to agree."""
    since: float
    """Seconds since the epoch."""

    def before(self, other: SessionPlace) -> bool:
        """The other one is right."""
        return (-self.move, self.since, self.worker_id) > (-other.move, other.since, other.worker_id)


class SessionAffinity:
    """Of one model. The first request of a session goes where the router sends it, the others follow it.

    ``hard``: as long as that worker lives and has not failed the very request. ``soft``: unless it is much busier than the
    others; then the session moves with the request. A session is forgotten ``ttl`` seconds after its last request.
    """

    def __init__(self, ttl: float, mode: AffinityMode, clock: Callable[[], float] = time.time) -> None:
        self._ttl = ttl
        self._mode = mode
        self._clock = clock
        self._places: dict[str, tuple[SessionPlace, float]] = {}
        """With the time of the last use, in that order."""

    def __len__(self) -> int:
        return len(self._places)

    def worker(self, request: RouteRequest, workers: Mapping[int, WorkerView], offered: Mapping[int, WorkerView]) -> int | None:
        """Where the request's session wants it, if that can be. ``offered`` are the workers that are not left out for failing.
        O(1); O(workers) for a soft session."""
        known = self._places.get(request.session or "")
        if known is None:
            return None
        place, used = known
        if self._clock() - used > self._ttl:
            del self._places[place.session]
            return None
        candidates = workers if self._mode == "hard" else offered
        if place.worker_id not in candidates or place.worker_id in request.excluded:
            return None
        if self._mode == "soft" and _too_busy(place.worker_id, offered):
            return None
        return place.worker_id

    def placed(self, session: str, worker_id: int) -> SessionPlace:
        """A request of the session was sent there."""
        now = self._clock()
        known = self._places.pop(session, None)
        if known is None or now - known[1] > self._ttl:
            place = SessionPlace(session, worker_id, 0, now)
        elif known[0].worker_id != worker_id:
            place = SessionPlace(session, worker_id, known[0].move + 1, now)
        else:
            place = known[0]
        self._keep(place, now)
        return place

    def heard(self, place: SessionPlace) -> None:
        """Another frontend sent a request of the session there."""
        now = self._clock()
        known = self._places.pop(place.session, None)
        if known is not None and now - known[1] <= self._ttl and place.before(known[0]):
            place = known[0]
        self._keep(place, now)

    def places(self) -> Iterator[SessionPlace]:
        """All that are remembered, those used longest ago first."""
        oldest = self._clock() - self._ttl
        return (place for place, used in self._places.values() if used > oldest)

    def _keep(self, place: SessionPlace, now: float) -> None:
        self._places[place.session] = (place, now)
        if len(self._places) > _LIMIT:
            for session in tuple(islice(self._places, _LIMIT // 10)):
                del self._places[session]


def _too_busy(worker_id: int, workers: Mapping[int, WorkerView]) -> bool:
    mean = sum(worker.running for worker in workers.values()) / len(workers)
    running = workers[worker_id].running
    return running > mean * _OVER_MEAN and running >= mean + 2
