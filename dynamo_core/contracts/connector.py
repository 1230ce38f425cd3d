"""The connector contract: carries a planner's decision out. Alpha: it may change until a planner ships."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol

import msgspec

from dynamo_core.contracts.planner import ScalingDecision

__all__ = ["Connector", "ConnectorContext", "PoolReplicas"]


class ConnectorContext(msgspec.Struct, frozen=True, kw_only=True):
    """What the planning process hands to a connector's factory."""

    namespace: str
    model: str
    clock: Callable[[], float]
    """Seconds, monotonic; virtual in the simulator."""


class PoolReplicas(msgspec.Struct, frozen=True, kw_only=True):
    """What the connector knows of one pool."""

    wanted: int
    ready: int


class Connector(Protocol):
    """Made by a :class:`~dynamo_core.specs.ConnectorSpec` factory; driven by the planning process on its event loop."""

    def start(self) -> Awaitable[None]:
        """Raises :class:`~dynamo_core.errors.StartupError` that names what is out of reach."""
        ...

    def replicas(self) -> Awaitable[Mapping[str, PoolReplicas]]:
        """Pool → how many workers it should have and has. Asked once an interval."""
        ...

    def apply(self, decision: ScalingDecision) -> Awaitable[None]:
        """Done when the decision is accepted, not when the workers are there. Applying it again changes nothing.

        What it raises is logged and counted; the planner decides anew in the next interval.
        """
        ...

    def close(self) -> Awaitable[None]:
        """Let go. The workers stay as they are."""
        ...
