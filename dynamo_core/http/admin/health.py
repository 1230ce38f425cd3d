"""``/health``, ``/live`` and ``/ready``."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from litestar import Response, get
from litestar.handlers import HTTPRouteHandler
from msgspec import Struct

from dynamo_core.http.gate import PUBLIC
from dynamo_core.runtime.stores import StoreState
from dynamo_core.serving.manager import ModelManager

__all__ = ["Health", "HealthBody", "InstanceHealth", "ModelHealth", "health_routes"]


class InstanceHealth(Struct, frozen=True):
    instance_id: int
    inflight: int
    """Requests that this frontend has there now."""


class ModelHealth(Struct, frozen=True):
    ready: bool
    instances: list[InstanceHealth]


class HealthBody(Struct, frozen=True, omit_defaults=True):
    status: str
    models: dict[str, ModelHealth]
    stores: dict[str, StoreState] = {}
    """Discovery and the planes. Traffic goes on while they are out of reach."""


class Health:
    """What this frontend says of itself. ``draining`` is set by whoever shuts it down."""

    def __init__(self, manager: ModelManager, stores: Callable[[], Mapping[str, StoreState]] = dict) -> None:
        self.draining = False
        self._manager = manager
        self.stores = stores

    @property
    def ready(self) -> bool:
        return not self.draining and any(served.ready for served in self._manager.models())

    def body(self, status: str) -> HealthBody:
        models = {
            served.name: ModelHealth(served.ready, [InstanceHealth(w.id, w.inflight) for w in served.workers.values()])
            for served in self._manager.models()
        }
        return HealthBody(status, models, dict(self.stores()))


def health_routes(health: Health) -> list[HTTPRouteHandler]:
    @get("/health", tags=["Operations"], summary="Health", opt={PUBLIC: True}, sync_to_thread=False)
    def get_health() -> Response[HealthBody]:
        """200 while the frontend takes requests, models or not; 503 while it drains. A discovery store or plane whose server is
        out of reach is said so; requests go on with what was known last."""
        if health.draining:
            return Response(health.body("draining"), status_code=503)
        return Response(health.body("healthy"))

    @get("/live", tags=["Operations"], summary="Liveness", opt={PUBLIC: True}, sync_to_thread=False)
    def get_live() -> dict[str, str]:
        """200 as long as the process answers."""
        return {"status": "live"}

    @get("/ready", tags=["Operations"], summary="Readiness", opt={PUBLIC: True}, sync_to_thread=False)
    def get_ready() -> Response[HealthBody]:
        """200 when at least one model has a worker, else 503."""
        ready = health.ready
        return Response(health.body("ready" if ready else "not_ready"), status_code=200 if ready else 503)

    return [get_health, get_live, get_ready]
