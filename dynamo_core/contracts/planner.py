"""The planner contract: how many workers each pool should have. Alpha: it may change until a planner ships.

Once an interval the planning process observes every pool, asks the planner and hands its decision to the connector. A pool is
named by the namespace and component of its workers' endpoints, ``dynamo.backend``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import msgspec

from dynamo_core.contracts.engine import EngineLoad
from dynamo_core.contracts.model_card import Role
from dynamo_core.contracts.planner_stage import PlannerStage, StageName
from dynamo_core.contracts.predictor import Predictor

__all__ = ["Planner", "PlannerContext", "PlannerObservation", "PoolReading", "ScalingDecision"]


class PoolReading(msgspec.Struct, frozen=True, kw_only=True):
    """One pool over the interval that has just ended."""

    pool: str
    role: Role = Role.AGGREGATED
    ready: int = 0
    starting: int = 0
    requests: int = 0
    """Arrivals in the interval."""
    input_tokens: float = 0.0
    """Mean of a request, as is ``output_tokens``."""
    output_tokens: float = 0.0
    ttft_ms: float | None = None
    """Mean; ``None`` without a request that got a token. So is ``itl_ms``."""
    itl_ms: float | None = None
    loads: tuple[EngineLoad, ...] = ()
    """The latest reading of each ready worker."""


class PlannerObservation(msgspec.Struct, frozen=True, kw_only=True):
    time: float
    """Seconds on the context's clock, at the end of the interval."""
    interval: float
    """Seconds."""
    pools: tuple[PoolReading, ...] = ()


class ScalingDecision(msgspec.Struct, frozen=True, kw_only=True):
    id: int
    """Grows with each decision of a planner."""
    replicas: Mapping[str, int]
    """Pool → workers wanted. A pool that is not in it stays as it is."""
    reason: str = ""
    """One line for the log."""


class PlannerContext(msgspec.Struct, frozen=True, kw_only=True):
    """What the planning process hands to a planner's factory."""

    model: str
    interval: float
    """Seconds between two calls of ``plan``."""
    clock: Callable[[], float]
    """Seconds, monotonic; virtual in the simulator. A planner uses no other clock."""
    predictor: Callable[[str], Predictor]
    """Makes a predictor of the chosen kind for one series, such as ``dynamo.backend requests``."""
    stages: Mapping[StageName, Sequence[PlannerStage]] = {}
    """Active stages, those of lower priority first. A planner that runs none of them says so in its documentation."""


class Planner(Protocol):
    """Made by a :class:`~dynamo_core.specs.PlannerSpec` factory."""

    def plan(self, observation: PlannerObservation) -> ScalingDecision | None:
        """What should be, or ``None`` to change nothing. Called once an interval; may compute for a second, must not wait.

        An exception is logged and counted, and nothing changes.
        """
        ...

    # Optional, looked up once:
    #   def carried_out(self, decision: ScalingDecision) -> None    the connector has done it
