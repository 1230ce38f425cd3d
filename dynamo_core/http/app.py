"""The Litestar application of a frontend."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from litestar import Litestar

from dynamo_core.config import Settings
from dynamo_core.http.admin import Health, Peers, busy_routes, health_routes, metrics_route, openapi_config, openapi_route
from dynamo_core.http.body import LeanRequest
from dynamo_core.http.errors import exception_handlers
from dynamo_core.http.exchange import ExchangeLayer, remember_error
from dynamo_core.http.fast_path import FastPath, raise_failure
from dynamo_core.http.gate import Preparer, gate
from dynamo_core.http.observe import AccessLog, FrontendMetrics
from dynamo_core.http.openai import (
    CHAT_PATH,
    COMPLETIONS_PATH,
    OpenAiService,
    chat_route,
    completions_route,
    model_routes,
)
from dynamo_core.http.openai.defaults import read_request_template
from dynamo_core.plugins import Compiled
from dynamo_core.serving.manager import ModelManager
from dynamo_core.specs import HttpSpec

__all__ = ["create_app"]

_ENDPOINTS = {CHAT_PATH: "chat_completions", COMPLETIONS_PATH: "completions"}


def create_app(
    manager: ModelManager,
    compiled: Compiled,
    settings: Settings,
    metrics: FrontendMetrics,
    *,
    health: Health | None = None,
    direct: bool = False,
    peers: Peers | None = None,
) -> Litestar:
    """Everything that a frontend serves, with the plugins' routes, middleware, guards and exception handlers.

    ``direct``: the server is uvicorn, whose ``send`` and ``receive`` may be stepped by hand, so that streams are written from
    the callback that has the token. Middleware of a plugin wants to see what is sent: with any, streams go through it instead. A
    request that meets no middleware or guards of plugins takes the fast path.
    ``peers`` makes ``/metrics`` the sum over several frontends.
    """
    specs = tuple(compiled.http)
    body_limit = round(settings.http_body_limit_mb * 2**20)
    service = OpenAiService(manager, metrics, Preparer.of(compiled))
    defaults = read_request_template(settings.request_template)
    admission = gate(compiled)
    generating = (chat_route(service, defaults), completions_route(service, defaults))
    fast = not any(spec.middleware or spec.guards for spec in specs)
    middleware = [item for item in (raise_failure if fast else None, admission) if item is not None]
    app = Litestar(
        route_handlers=[
            *generating,
            *model_routes(manager),
            *health_routes(health or Health(manager)),
            metrics_route(metrics, manager, peers),
            *busy_routes(manager),
            openapi_route(),
            *(route for spec in specs for route in spec.route_handlers),
        ],
        middleware=[*middleware, *(item for spec in specs for item in spec.middleware)],
        guards=[guard for spec in specs for guard in spec.guards],
        exception_handlers=_handlers(body_limit, specs),
        after_exception=[remember_error],
        request_class=LeanRequest,
        request_max_body_size=body_limit,
        openapi_config=openapi_config(),
        logging_config=None,
        debug=False,
    )
    finished = metrics.start_plugins(compiled)  # last, so that nothing is registered for an application that cannot be made
    app.asgi_handler = ExchangeLayer(
        FastPath(app.asgi_handler, generating, body_limit, admission) if fast else app.asgi_handler,
        endpoints=_ENDPOINTS,
        observer=finished,
        finished=AccessLog() if settings.access_log else None,
        direct=direct and not any(spec.middleware for spec in specs),
        patient=settings.cancellation_policy == "stop",
    )
    return app


def _handlers(body_limit: int, specs: Sequence[HttpSpec]) -> dict[Any, Any]:
    handlers = dict(exception_handlers(body_limit))
    for spec in specs:
        handlers.update(spec.exception_handlers)
    return handlers
