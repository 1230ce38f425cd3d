"""Router ``round-robin``: each request to the next worker, in the order of their ids. Deterministic, looks at nothing else."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dynamo_core.contracts import Decision, Hold, Route, RouterContext, RouteRequest, WorkerView
from dynamo_core.hookspecs import hookimpl
from dynamo_core.specs import RouterSpec

__all__ = ["RoundRobin", "dynamo_routers"]


class RoundRobin:
    """A worker that the client named is taken; workers that failed the request are passed over."""

    def __init__(self, _config: Any, _context: RouterContext) -> None:
        self._last = -1

    def select(self, requests: Sequence[RouteRequest], workers: Mapping[int, WorkerView]) -> Sequence[Decision]:
        ids = sorted(workers)
        return [self._place(request, ids, workers) for request in requests]

    def _place(self, request: RouteRequest, ids: list[int], workers: Mapping[int, WorkerView]) -> Decision:
        excluded = request.excluded
        pinned = request.pinned
        if pinned is not None and pinned in workers and pinned not in excluded:
            return Route(pinned)
        if excluded:
            ids = [worker for worker in ids if worker not in excluded]
        if not ids:
            return Hold(reason="no worker is left for this request")
        self._last = ids[bisect_right(ids, self._last) % len(ids)]
        return Route(self._last)


@hookimpl
def dynamo_routers() -> Iterable[RouterSpec]:
    yield RouterSpec(name="round-robin", factory=RoundRobin, description="Each request to the next worker.")
