"""What stands between the dispatcher and a router plugin: its mistakes cost requests, never the frontend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dynamo_core.contracts import Router, RouteRequest, WorkerView
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
)


class RouterGuard:
    """Calls one model's router; what it raises is logged, counted as its plugin's fault and goes no further."""

    def __init__(self, router: Router, model: str, plugin: str, faults: Faults) -> None:
        self.router = router
        self.model = model
        self._plugin = plugin
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
            self._faults.count(self._plugin, "select", error)
            return None
        self.fault(f"made {len(decisions)} decisions for {len(requests)} requests")
        return None

    def tell(self, method: str, *args: Any) -> None:
        """Call an optional method, if the router has it."""
        call = self._optional[method]
        if call is not None:
            try:
                call(*args)
            except Exception as error:  # noqa: BLE001  # as above
                self._faults.count(self._plugin, method, error)

    def fault(self, what: str) -> None:
        """Count an impossible answer."""
        self._faults.count(self._plugin, "select", ValueError(f"the router of model {self.model} {what}"))
