"""What stands between the dispatcher and a router plugin: its mistakes cost requests, never the frontend."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from dynamo_core.contracts import BusyThresholds, KvBatch, OverlapScore, PotentialLoad, Route, Router, RouteRequest, WorkerView
from dynamo_core.plugins import Faults

__all__ = ["RouterGuard"]

_OPTIONAL = (
    "first_token",
    "output_tokens",
    "finished",
    "kv_events",
    "kv_lost",
    "worker_added",
    "worker_removed",
    "routed_elsewhere",
    "query",
    "dropped",
    "overlap_scores",
    "potential_loads",
    "known_blocks",
    "busy_thresholds",
    "set_busy_thresholds",
)


class RouterGuard:
    """Calls one model's router; what it raises is logged, counted as its plugin's fault and goes no further."""

    def __init__(self, router: Router, model: str, plugin: str, faults: Faults) -> None:
        self.router = router
        self.model = model
        self.plugin = plugin
        self._faults = faults
        self._optional = {name: getattr(router, name, None) for name in _OPTIONAL}

    def has(self, method: str) -> bool:
        return self._optional[method] is not None

    def select(self, requests: Sequence[RouteRequest], workers: Mapping[int, WorkerView]) -> Sequence[object] | None:
        """One answer a request, not yet checked; ``None`` when the router failed."""
        try:
            decisions = self.router.select(requests, workers)
            if len(decisions) == len(requests):
                return decisions
        except Exception as error:  # noqa: BLE001  # a plugin's mistake ends here
            self._faults.count(self.plugin, "select", error)
            return None
        self.fault(f"made {len(decisions)} decisions for {len(requests)} requests")
        return None

    async def query(self, request: RouteRequest, workers: Mapping[int, WorkerView]) -> object:
        """What the router would answer; ``None`` when it failed. A router that has no ``query`` of its own books the request and
        hears at once that it is over."""
        call = self._optional["query"]
        if call is None:
            decision = (self.select([request], workers) or (None,))[0]
            if isinstance(decision, Route):
                self.tell("finished", request, decision.worker_id, "cancelled")
            return decision
        answer = self._asked("query", call, request, workers)
        if inspect.isawaitable(answer):
            try:
                return await answer
            except Exception as error:  # noqa: BLE001  # as below
                self._faults.count(self.plugin, "query", error)
                return None
        return answer

    def overlap_scores(self, request: RouteRequest, workers: Mapping[int, WorkerView]) -> Mapping[int, Sequence[OverlapScore]]:
        """By worker; empty for a router that knows of no caches."""
        call = self._optional["overlap_scores"]
        found = None if call is None else self._asked("overlap_scores", call, request, workers)
        return found if isinstance(found, Mapping) else {}

    def potential_loads(
        self, request: RouteRequest, workers: Mapping[int, WorkerView]
    ) -> Mapping[int, Sequence[PotentialLoad]] | None:
        """By worker; ``None`` from a router that keeps no account of ranks."""
        call = self._optional["potential_loads"]
        found = None if call is None else self._asked("potential_loads", call, request, workers)
        return found if isinstance(found, Mapping) else None

    def known_blocks(self) -> Sequence[KvBatch]:
        """Empty for a router that knows of no caches."""
        call = self._optional["known_blocks"]
        found = None if call is None else self._asked("known_blocks", call)
        return found if isinstance(found, Sequence) else ()

    def busy_thresholds(self) -> BusyThresholds | None:
        """``None`` for a router that has none, or none that can be changed."""
        call = self._optional["busy_thresholds"]
        found = None if call is None or not self.has("set_busy_thresholds") else self._asked("busy_thresholds", call)
        return found if isinstance(found, BusyThresholds) else None

    async def close(self) -> None:
        """The router's own ``close``, if it has one."""
        close = getattr(self.router, "close", None)
        if close is not None:
            try:
                result = close()
                if inspect.isawaitable(result):
                    await result
            except Exception as error:  # noqa: BLE001  # as below
                self._faults.count(self.plugin, "close", error)

    def tell(self, method: str, *args: Any) -> None:
        """Call an optional method, if the router has it."""
        call = self._optional[method]
        if call is not None:
            try:
                call(*args)
            except Exception as error:  # noqa: BLE001  # as above
                self._faults.count(self.plugin, method, error)

    def _asked(self, method: str, call: Any, *args: Any) -> Any:
        try:
            return call(*args)
        except Exception as error:  # noqa: BLE001  # as above
            self._faults.count(self.plugin, method, error)
            return None

    def fault(self, what: str) -> None:
        """Count an impossible answer."""
        self._faults.count(self.plugin, "select", ValueError(f"the router of model {self.model} {what}"))
