"""The planner-stage contract: one step of the pipeline around a planner. Alpha: it may change until a planner ships."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Protocol, TypeAlias

import msgspec

__all__ = ["PlannerStage", "Proposal", "StageName", "StageResult", "StageState"]

StageName: TypeAlias = Literal["predict", "propose", "reconcile", "constrain"]
"""In this order. ``predict`` adds to the forecast, the others to the proposals."""


class Proposal(msgspec.Struct, frozen=True, kw_only=True):
    """How many workers one pool should have, in the eyes of one stage."""

    pool: str
    kind: Literal["set", "at-least", "at-most"]
    """A floor (``at-least``) wins over a ceiling (``at-most``), both over ``set``. ``constrain`` may not ``set``."""
    replicas: int
    reason: str = ""


class StageState(msgspec.Struct, frozen=True, kw_only=True):
    """What a stage sees."""

    observation: Any
    """A :class:`~dynamo_core.contracts.planner.PlannerObservation`."""
    forecast: Mapping[str, float] = {}
    """Series → value expected in the next interval; of several stages the first to name a series has it."""
    proposals: tuple[Proposal, ...] = ()
    """Of the stages before this one."""


class StageResult(msgspec.Struct, frozen=True, kw_only=True):
    """What a stage adds."""

    forecast: Mapping[str, float] = {}
    proposals: tuple[Proposal, ...] = ()


class PlannerStage(Protocol):
    """Made by a :class:`~dynamo_core.specs.PlannerStageSpec` factory."""

    def run(self, state: StageState) -> StageResult:
        """Called once an interval. What it raises is logged and counted, and the stage adds nothing."""
        ...
