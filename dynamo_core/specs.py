"""The frozen records that registration hooks yield.

``api`` is the version of the contract that a provider was written for; :data:`SUPPORTED_API` says which ones this core speaks.
A factory gets the plugin's configuration (an instance of what its ``dynamo_config`` hook names, or ``None``) and the context
of its kind.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeAlias

import msgspec

from dynamo_core.contracts.connector import Connector, ConnectorContext
from dynamo_core.contracts.discovery import Discovery
from dynamo_core.contracts.engine import Engine, EngineContext
from dynamo_core.contracts.gate import HttpRequestInfo, Principal, RequestSummary
from dynamo_core.contracts.output_filter import OutputFilter, OutputStream
from dynamo_core.contracts.parser import OutputParser, ParserContext
from dynamo_core.contracts.planes import EventPlane, RequestPlane
from dynamo_core.contracts.planner import Planner, PlannerContext
from dynamo_core.contracts.planner_stage import PlannerStage, StageName
from dynamo_core.contracts.pool_selector import PoolSelector, PoolSelectorContext
from dynamo_core.contracts.predictor import Predictor, PredictorContext
from dynamo_core.contracts.prefill_policy import PrefillPolicy, PrefillPolicyContext
from dynamo_core.contracts.router import Router, RouterContext

__all__ = [
    "SUPPORTED_API",
    "AuthenticatorSpec",
    "CommandSpec",
    "ConnectorSpec",
    "DiscoverySpec",
    "EngineSpec",
    "EventPlaneSpec",
    "HttpSpec",
    "MetricsContext",
    "MetricsSpec",
    "OutputFilterSpec",
    "ParserSpec",
    "PlaneContext",
    "PlannerSpec",
    "PlannerStageSpec",
    "PoolSelectorSpec",
    "PredictorSpec",
    "PrefillPolicySpec",
    "RateLimiterSpec",
    "RequestPlaneSpec",
    "RouterSpec",
    "Stability",
]

SUPPORTED_API: Mapping[str, frozenset[int]] = {
    kind: frozenset({1})
    for kind in (
        "engine", "router", "discovery", "request-plane", "event-plane", "planner", "planner-stage", "predictor", "connector",
        "pool-selector", "prefill-policy", "parser", "authenticator", "rate-limiter", "output-filter",
        "metrics", "http", "command",
    )
}  # fmt: skip

Stability: TypeAlias = Literal["alpha", "beta", "stable"]


class PlaneContext(msgspec.Struct, frozen=True, kw_only=True):
    """For discovery stores and planes."""

    namespace: str
    run_dir: str
    """A private folder of this run, for sockets and files."""
    instance_id: int
    """Of this process; unique among the living."""
    request_plane: RequestPlane | None = None
    """The process's own, made but not serving yet. For event planes only."""


class MetricsContext(msgspec.Struct, frozen=True, kw_only=True):
    registry: Any
    """``prometheus_client.CollectorRegistry`` to register on; scraped with ours."""
    prefix: str
    """``dynamo_frontend`` unless ``DYN_METRICS_PREFIX`` says otherwise."""


class _Spec(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    """Lower case letters, digits and hyphens; unique among active providers of its kind."""
    api: int = 1
    stability: Stability = "stable"
    description: str = ""
    """One line, shown by ``dynamo plugins list``."""


class EngineSpec(_Spec, frozen=True, kw_only=True):
    factory: Callable[[Any, EngineContext], Engine]
    requires: Mapping[str, str] = {}
    """Modules that must be importable → the pip line that brings them; checked at activation, without importing."""
    needs_model: bool = True
    """False: runs without a model folder's weights (a tokenizer is enough or not even that)."""
    kv_events: bool = False
    """True when it can publish KV events."""


class RouterSpec(_Spec, frozen=True, kw_only=True):
    factory: Callable[[Any, RouterContext], Router]
    aliases: tuple[str, ...] = ()
    """Other accepted names, e.g. Dynamo's ``kv`` for ``kv-router``."""
    needs_kv_events: bool = False
    """True: refuse at start-up to be combined with an engine that has none."""


class DiscoverySpec(_Spec, frozen=True, kw_only=True):
    factory: Callable[[Any, PlaneContext], Discovery]


class RequestPlaneSpec(_Spec, frozen=True, kw_only=True):
    factory: Callable[[Any, PlaneContext], RequestPlane]


class EventPlaneSpec(_Spec, frozen=True, kw_only=True):
    factory: Callable[[Any, PlaneContext], EventPlane]


class AuthenticatorSpec(_Spec, frozen=True, kw_only=True):
    factory: Callable[[Any], Callable[[HttpRequestInfo], Any]]
    """Makes ``authenticate(request) -> Principal | None``, sync or async; ``None`` abstains, an exception denies."""


class RateLimiterSpec(_Spec, frozen=True, kw_only=True):
    factory: Callable[[Any], Callable[[HttpRequestInfo, Principal | None], Any]]
    """Makes ``limit(request, principal) -> None``, sync or async; raises :class:`~dynamo_core.errors.RateLimited`."""


class PlannerSpec(_Spec, frozen=True, kw_only=True):
    stability: Stability = "alpha"
    factory: Callable[[Any, PlannerContext], Planner]


class PlannerStageSpec(_Spec, frozen=True, kw_only=True):
    stability: Stability = "alpha"
    stage: StageName
    priority: int = 100
    """Within its stage; lower runs first, equals in plugin order."""
    factory: Callable[[Any, PlannerContext], PlannerStage]
    """The context's own ``stages`` are empty here."""


class PredictorSpec(_Spec, frozen=True, kw_only=True):
    stability: Stability = "alpha"
    factory: Callable[[Any, PredictorContext], Predictor]


class ConnectorSpec(_Spec, frozen=True, kw_only=True):
    stability: Stability = "alpha"
    factory: Callable[[Any, ConnectorContext], Connector]


class PoolSelectorSpec(_Spec, frozen=True, kw_only=True):
    stability: Stability = "alpha"
    factory: Callable[[Any, PoolSelectorContext], PoolSelector]


class PrefillPolicySpec(_Spec, frozen=True, kw_only=True):
    stability: Stability = "alpha"
    factory: Callable[[Any, PrefillPolicyContext], PrefillPolicy]


class ParserSpec(_Spec, frozen=True, kw_only=True):
    """``name`` is what a model card's ``tool_call_parser`` or ``reasoning_parser`` says."""

    stability: Stability = "alpha"
    parses: Literal["tool-calls", "reasoning"]
    """The same name may stand once for each."""
    factory: Callable[[Any, ParserContext], OutputParser]


class OutputFilterSpec(_Spec, frozen=True, kw_only=True):
    factory: Callable[[Any], Callable[[OutputStream], OutputFilter | None]]
    """Called once, at start-up; makes ``open(stream)``, which is called once a stream and returns ``None`` to leave it alone."""


class MetricsSpec(_Spec, frozen=True, kw_only=True):
    factory: Callable[[Any, MetricsContext], Callable[[RequestSummary], None] | None]
    """Registers collectors; may return an observer of finished requests."""


class HttpSpec(_Spec, frozen=True, kw_only=True):
    """Litestar objects, as Litestar wants them."""

    route_handlers: Sequence[Any] = ()
    middleware: Sequence[Any] = ()
    guards: Sequence[Any] = ()
    exception_handlers: Mapping[Any, Any] = {}


class CommandSpec(_Spec, frozen=True, kw_only=True):
    """``dynamo NAME``; the factory imports and returns a ``click.Command`` only when it is called for."""

    factory: Callable[[], Any]
