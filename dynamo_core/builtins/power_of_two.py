"""Router ``power-of-two``: of two workers drawn at random, the one with fewer requests of all frontends.

Nearly as even as looking at all of them, at a cost that does not grow with their number, and without the herd that several
frontends make when they all see the same least loaded worker.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dynamo_core.contracts import Decision, Hold, Route, RouterContext, RouteRequest, WorkerView
from dynamo_core.hookspecs import hookimpl
from dynamo_core.specs import RouterSpec

__all__ = ["PowerOfTwo", "dynamo_routers"]


class PowerOfTwo:
    """A worker that the client named is taken; workers that failed the request are not drawn. Repeatable with the seed."""

    def __init__(self, _config: Any, context: RouterContext) -> None:
        self._lots = random.Random(context.seed)

    def select(self, requests: Sequence[RouteRequest], workers: Mapping[int, WorkerView]) -> Sequence[Decision]:
        ids = sorted(workers)
        placed = dict.fromkeys(ids, 0)
        return [self._place(request, ids, workers, placed) for request in requests]

    def _place(
        self, request: RouteRequest, ids: list[int], workers: Mapping[int, WorkerView], placed: dict[int, int]
    ) -> Decision:
        """``placed`` counts what this turn has added, so that its requests see each other."""
        excluded, pinned = request.excluded, request.pinned
        if pinned is not None and pinned in workers and pinned not in excluded:
            chosen = pinned
        else:
            if excluded:
                ids = [worker for worker in ids if worker not in excluded]
            if not ids:
                return Hold(reason="no worker is left for this request")
            drawn = self._lots.sample(ids, min(2, len(ids)))
            chosen = min(drawn, key=lambda worker: workers[worker].running + placed[worker])
        placed[chosen] += 1
        return Route(chosen)


@hookimpl
def dynamo_routers() -> Iterable[RouterSpec]:
    yield RouterSpec(name="power-of-two", factory=PowerOfTwo, description="Of two workers drawn at random, the less loaded one.")
