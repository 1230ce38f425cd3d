"""Plugin ``nats``: requests, responses and events over NATS."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from dynamo_core.hookspecs import hookimpl
from dynamo_core.specs import EventPlaneSpec, PlaneContext, RequestPlaneSpec
from dynamo_nats.options import NatsConfig

__all__ = ["NatsConfig", "dynamo_config", "dynamo_event_planes", "dynamo_request_planes"]


def _requests(config: Any, context: PlaneContext) -> Any:
    from dynamo_nats.options import from_environment
    from dynamo_nats.requests import NatsRequests

    return NatsRequests(from_environment(config or NatsConfig()), context)


def _events(config: Any, context: PlaneContext) -> Any:
    from dynamo_nats.events import NatsEvents
    from dynamo_nats.options import from_environment

    return NatsEvents(from_environment(config or NatsConfig()), context)


@hookimpl
def dynamo_config() -> type[msgspec.Struct]:
    return NatsConfig


@hookimpl
def dynamo_request_planes() -> Iterable[RequestPlaneSpec]:
    yield RequestPlaneSpec(name="nats", factory=_requests, description="Through a NATS server: no connection between processes.")


@hookimpl
def dynamo_event_planes() -> Iterable[EventPlaneSpec]:
    yield EventPlaneSpec(name="nats", factory=_events, description="Core NATS; gaps are told.")
