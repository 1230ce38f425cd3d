"""Router ``least-loaded``: the worker with the fewest requests of all frontends; among equals they take turns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dynamo_core.contracts import Decision, Hold, Route, RouterContext, RouteRequest, WorkerView
from dynamo_core.hookspecs import hookimpl
from dynamo_core.specs import RouterSpec

__all__ = ["LeastLoaded", "dynamo_routers"]


class LeastLoaded:
    """A worker that the client named is taken; workers that failed the request are passed over. O(workers) a request."""

    def __init__(self, _config: Any, _context: RouterContext) -> None:
        self._turn = 0
        self._chosen: dict[int, int] = {}

    def select(self, requests: Sequence[RouteRequest], workers: Mapping[int, WorkerView]) -> Sequence[Decision]:
        load = {worker.id: self._load(worker) for worker in workers.values()}
        return [self._place(request, load) for request in requests]

    def _load(self, worker: WorkerView) -> int:
        return worker.running

    def _weight(self, _request: RouteRequest) -> int:
        """What a request adds to the load of its worker."""
        return 1

    def worker_removed(self, worker_id: int) -> None:
        self._chosen.pop(worker_id, None)

    def _place(self, request: RouteRequest, load: dict[int, int]) -> Decision:
        """``load`` is counted on, so that the requests of one turn see each other."""
        excluded, pinned = request.excluded, request.pinned
        if pinned is not None and pinned in load and pinned not in excluded:
            chosen = pinned
        else:
            fit = [worker for worker in load if worker not in excluded]
            if not fit:
                return Hold(reason="no worker is left for this request")
            chosen = min(fit, key=lambda worker: (load[worker], self._chosen.get(worker, 0), worker))
        load[chosen] += self._weight(request)
        self._turn += 1
        self._chosen[chosen] = self._turn
        return Route(chosen)


@hookimpl
def dynamo_routers() -> Iterable[RouterSpec]:
    yield RouterSpec(name="least-loaded", factory=LeastLoaded, description="The worker with the fewest requests.")
