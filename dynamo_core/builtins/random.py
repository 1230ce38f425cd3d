"""Router ``random``: any worker, each as likely as another."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dynamo_core.contracts import Decision, Hold, Route, RouterContext, RouteRequest, WorkerView
from dynamo_core.hookspecs import hookimpl
from dynamo_core.specs import RouterSpec

__all__ = ["RandomRouter", "dynamo_routers"]


class RandomRouter:
    """A worker that the client named is taken; workers that failed the request are not drawn. Repeatable with the seed."""

    def __init__(self, _config: Any, context: RouterContext) -> None:
        self._lots = random.Random(context.seed)

    def select(self, requests: Sequence[RouteRequest], workers: Mapping[int, WorkerView]) -> Sequence[Decision]:
        ids = sorted(workers)
        return [self._place(request, ids, workers) for request in requests]

    def _place(self, request: RouteRequest, ids: list[int], workers: Mapping[int, WorkerView]) -> Decision:
        excluded, pinned = request.excluded, request.pinned
        if pinned is not None and pinned in workers and pinned not in excluded:
            return Route(pinned)
        if excluded:
            ids = [worker for worker in ids if worker not in excluded]
        return Route(self._lots.choice(ids)) if ids else Hold(reason="no worker is left for this request")


@hookimpl
def dynamo_routers() -> Iterable[RouterSpec]:
    yield RouterSpec(name="random", factory=RandomRouter, description="Any worker, each as likely as another.")
