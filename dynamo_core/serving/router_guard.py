"""What stands between the dispatcher and a router plugin: its mistakes cost requests, never the frontend."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from dynamo_core.contracts import Router, RouteRequest, WorkerView

__all__ = ["RouterGuard"]

_log = logging.getLogger(__name__)

_OPTIONAL = ("first_token", "output_tokens", "finished", "kv_events", "kv_lost", "worker_added", "worker_removed")


class RouterGuard:
    """Calls one model's router; what it raises is logged, counted in ``errors`` and goes no further."""

    def __init__(self, router: Router, model: str) -> None:
        self.router = router
        self.model = model
        self.errors = 0
        """Exceptions and impossible answers."""
        self._optional = {name: getattr(router, name, None) for name in _OPTIONAL}

    def has(self, method: str) -> bool:
        return self._optional[method] is not None

    def select(self, requests: Sequence[RouteRequest], workers: Mapping[int, WorkerView]) -> Sequence[object] | None:
        """One answer a request, not yet checked; ``None`` when the router failed."""
        try:
            decisions = self.router.select(requests, workers)
            if len(decisions) == len(requests):
                return decisions
        except Exception:  # noqa: BLE001 - a plugin's mistake ends here
            self._raised("select")
            return None
        self.fault(f"made {len(decisions)} decisions for {len(requests)} requests")
        return None

    def tell(self, method: str, *args: Any) -> None:
        """Call an optional method, if the router has it."""
        call = self._optional[method]
        if call is not None:
            try:
                call(*args)
            except Exception:  # noqa: BLE001 - a plugin's mistake ends here
                self._raised(method)

    def fault(self, what: str) -> None:
        """An impossible answer."""
        self.errors += 1
        _log.error("the router of model %s %s", self.model, what)

    def _raised(self, method: str) -> None:
        self.errors += 1
        _log.exception("the router of model %s raised in %s()", self.model, method)
