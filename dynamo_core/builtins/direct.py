"""Router ``direct``: the client names the worker (``x-dynamo-worker-instance-id``); a request that names none is refused."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dynamo_core.contracts import Decision, Reject, Route, RouterContext, RouteRequest, WorkerView
from dynamo_core.errors import InvalidRequest, NoInstances
from dynamo_core.hookspecs import hookimpl
from dynamo_core.specs import RouterSpec

__all__ = ["Direct", "dynamo_routers"]

_HEADER = "x-dynamo-worker-instance-id"


class Direct:
    """Never chooses: a worker that is gone, or that failed the request, is not replaced by another."""

    def __init__(self, _config: Any, context: RouterContext) -> None:
        self._model = context.model

    def select(self, requests: Sequence[RouteRequest], workers: Mapping[int, WorkerView]) -> Sequence[Decision]:
        return [self._place(request, workers) for request in requests]

    def _place(self, request: RouteRequest, workers: Mapping[int, WorkerView]) -> Decision:
        pinned = request.pinned
        if pinned is None:
            message = f"This server routes by name; say in the header {_HEADER} which worker is meant."
            return Reject(InvalidRequest(message, param=_HEADER))
        if pinned not in workers or pinned in request.excluded:
            return Reject(NoInstances(f"Worker {pinned} does not serve the model {self._model!r}."))
        return Route(pinned)


@hookimpl
def dynamo_routers() -> Iterable[RouterSpec]:
    yield RouterSpec(name="direct", factory=Direct, description="The worker that the client names.")
