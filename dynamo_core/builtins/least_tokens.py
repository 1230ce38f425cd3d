"""Router ``least-tokens``: the worker with the fewest prompt tokens of all frontends; among equals they take turns.

Long prompts weigh more than short ones, which ``least-loaded`` counts alike.
"""

from __future__ import annotations

from collections.abc import Iterable

from dynamo_core.builtins.least_loaded import LeastLoaded
from dynamo_core.contracts import RouteRequest, WorkerView
from dynamo_core.hookspecs import hookimpl
from dynamo_core.specs import RouterSpec

__all__ = ["LeastTokens", "dynamo_routers"]


class LeastTokens(LeastLoaded):
    """As :class:`LeastLoaded`, counting prompt tokens instead of requests."""

    def _load(self, worker: WorkerView) -> int:
        return worker.inflight_tokens + worker.inflight_tokens_elsewhere

    def _weight(self, request: RouteRequest) -> int:
        return len(request.token_ids)


@hookimpl
def dynamo_routers() -> Iterable[RouterSpec]:
    yield RouterSpec(name="least-tokens", factory=LeastTokens, description="The worker with the fewest prompt tokens.")
