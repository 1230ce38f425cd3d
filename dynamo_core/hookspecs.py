"""Every hook, on one page.

A plugin is a module or an object whose functions carry :data:`hookimpl` and one of these names. An implementation may leave out
arguments that it does not need. Three kinds:

* **registration**: called once at start-up; yield records of :mod:`dynamo_core.specs`. The records whose factories get no
  configuration come from hooks that do, as ``config``.
* **request**: called for each request, compiled at start-up into plain calls; sync functions cost under 0.2 µs beside their own
  work, async ones a coroutine. Wrappers (``hookwrapper``) are refused here. ``config`` is the plugin's configuration or ``None``.
* **lifecycle**: awaited in plugin order at start-up, in reverse order on the way down.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec
import pluggy

from dynamo_core.contracts.gate import HttpRequestInfo, PreparedRequest, Principal, RequestSummary
from dynamo_core.specs import (
    AuthenticatorSpec,
    CommandSpec,
    ConnectorSpec,
    DiscoverySpec,
    EngineSpec,
    EventPlaneSpec,
    HttpSpec,
    MetricsSpec,
    OutputFilterSpec,
    ParserSpec,
    PlannerSpec,
    PlannerStageSpec,
    PoolSelectorSpec,
    PredictorSpec,
    PrefillPolicySpec,
    RateLimiterSpec,
    RequestPlaneSpec,
    RouterSpec,
)

__all__ = ["ENTRY_POINT_GROUP", "LIFECYCLE_HOOKS", "PROJECT", "REGISTRATION_HOOKS", "REQUEST_HOOKS", "hookimpl", "hookspec"]

PROJECT = "dynamo"
ENTRY_POINT_GROUP = "dynamo.plugins"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)

# --- registration ------------------------------------------------------------------------------------------------------------


@hookspec
def dynamo_config() -> type[msgspec.Struct]:  # type: ignore[empty-body]  # a specification has no body
    """The configuration of this plugin: a frozen ``msgspec.Struct(forbid_unknown_fields=True)`` for ``[plugins.NAME]``."""


@hookspec
def dynamo_engines() -> Iterable[EngineSpec]:  # type: ignore[empty-body]
    """Engines: ``--engine NAME``. Costs what the engine costs, in the worker."""


@hookspec
def dynamo_routers() -> Iterable[RouterSpec]:  # type: ignore[empty-body]
    """Routers: ``--router NAME``. Called once for the requests of one turn of the event loop."""


@hookspec
def dynamo_discovery() -> Iterable[DiscoverySpec]:  # type: ignore[empty-body]
    """Discovery stores: ``--discovery-backend NAME``. Awaited when workers come and go; no request waits for one."""


@hookspec
def dynamo_request_planes() -> Iterable[RequestPlaneSpec]:  # type: ignore[empty-body]
    """Request planes: ``--request-plane NAME``. Hot: called once a frame and once an item."""


@hookspec
def dynamo_event_planes() -> Iterable[EventPlaneSpec]:  # type: ignore[empty-body]
    """Event planes: ``--event-plane NAME``. Called once an engine step that changed the prefix cache."""


@hookspec
def dynamo_planners() -> Iterable[PlannerSpec]:  # type: ignore[empty-body]
    """Planners: how many workers each pool should have. Called once an interval. Alpha."""


@hookspec
def dynamo_planner_stages() -> Iterable[PlannerStageSpec]:  # type: ignore[empty-body]
    """Steps of the pipeline around a planner: predict, propose, reconcile, constrain. Called once an interval. Alpha."""


@hookspec
def dynamo_predictors() -> Iterable[PredictorSpec]:  # type: ignore[empty-body]
    """Predictors: the next value of one series. Called once an interval. Alpha."""


@hookspec
def dynamo_connectors() -> Iterable[ConnectorSpec]:  # type: ignore[empty-body]
    """Connectors: carry a planner's decision out. Awaited once an interval. Alpha."""


@hookspec
def dynamo_pool_selectors() -> Iterable[PoolSelectorSpec]:  # type: ignore[empty-body]
    """Pool selectors: which pool of workers a request goes to. Called once a request. Alpha."""


@hookspec
def dynamo_prefill_policies() -> Iterable[PrefillPolicySpec]:  # type: ignore[empty-body]
    """Prefill policies: where a prompt is computed. Called once a request where there are prefill workers. Alpha."""


@hookspec
def dynamo_parsers() -> Iterable[ParserSpec]:  # type: ignore[empty-body]
    """Parsers of tool calls and of reasoning, named by model cards. Called once a token of the choices that have one. Alpha."""


@hookspec
def dynamo_authenticators() -> Iterable[AuthenticatorSpec]:  # type: ignore[empty-body]
    """Authenticators; asked once a request, in plugin order until one admits or denies."""


@hookspec
def dynamo_rate_limiters() -> Iterable[RateLimiterSpec]:  # type: ignore[empty-body]
    """Rate limiters; every one is asked once a request, the first that raises denies."""


@hookspec
def dynamo_output_filters() -> Iterable[OutputFilterSpec]:  # type: ignore[empty-body]
    """Filters of the text on its way to the client. Asked once a stream; called once a token of the streams that have one, at
    0.2 µs beside the filter's own work. A stream without a filter costs one test."""


@hookspec
def dynamo_metrics() -> Iterable[MetricsSpec]:  # type: ignore[empty-body]
    """Prometheus collectors of a plugin's own, on the frontend's ``/metrics``; an observer is called once a request."""


@hookspec
def dynamo_http_routes(config: Any) -> Iterable[HttpSpec]:  # type: ignore[empty-body]
    """Routes, middleware, guards and exception handlers for the Litestar application. Middleware is called once a request,
    and with it streams are written by tasks of their own."""


@hookspec
def dynamo_commands(config: Any) -> Iterable[CommandSpec]:  # type: ignore[empty-body]
    """Commands of ``dynamo``; made when they are called for."""


# --- request -----------------------------------------------------------------------------------------------------------------


@hookspec
def dynamo_authenticate(request: HttpRequestInfo, config: Any) -> Principal | None:
    """Who is asking? A principal admits, ``None`` abstains, an exception denies. All abstaining is 401. Sync or async."""


@hookspec
def dynamo_rate_limit(request: HttpRequestInfo, principal: Principal | None, config: Any) -> None:
    """Raise :class:`~dynamo_core.errors.RateLimited` to refuse. Sync or async."""


@hookspec
def dynamo_prepare(request: PreparedRequest, config: Any) -> None:
    """Look at, change or (by raising) refuse a tokenized request before it is routed. Sync or async."""


@hookspec
def dynamo_request_finished(summary: RequestSummary, config: Any) -> None:
    """Told once of every request, whatever became of it. Sync only; what it raises is logged and counted."""


# --- lifecycle ---------------------------------------------------------------------------------------------------------------


@hookspec
def dynamo_startup(process: str, config: Any) -> None:
    """The process (``frontend`` or ``worker``) is about to serve. Sync or async; raising ends it with exit code 2."""


@hookspec
def dynamo_shutdown(process: str, config: Any) -> None:
    """The process has stopped serving. Sync or async; called for every plugin whose start-up succeeded."""


REGISTRATION_HOOKS = (
    "dynamo_config", "dynamo_engines", "dynamo_routers", "dynamo_discovery", "dynamo_request_planes", "dynamo_event_planes",
    "dynamo_planners", "dynamo_planner_stages", "dynamo_predictors", "dynamo_connectors", "dynamo_pool_selectors",
    "dynamo_prefill_policies", "dynamo_parsers", "dynamo_authenticators", "dynamo_rate_limiters", "dynamo_output_filters",
    "dynamo_metrics", "dynamo_http_routes", "dynamo_commands",
)  # fmt: skip
REQUEST_HOOKS = ("dynamo_authenticate", "dynamo_rate_limit", "dynamo_prepare", "dynamo_request_finished")
LIFECYCLE_HOOKS = ("dynamo_startup", "dynamo_shutdown")
