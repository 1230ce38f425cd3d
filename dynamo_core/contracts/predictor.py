"""The predictor contract: the next value of one series. Alpha: it may change until a planner ships."""

from __future__ import annotations

from typing import Protocol

import msgspec

__all__ = ["Predictor", "PredictorContext"]


class PredictorContext(msgspec.Struct, frozen=True, kw_only=True):
    """What the planner hands to a predictor's factory. One predictor serves one series."""

    series: str
    """What is predicted, for logs: ``dynamo.backend requests``."""
    interval: float
    """Seconds between two values."""


class Predictor(Protocol):
    """Made by a :class:`~dynamo_core.specs.PredictorSpec` factory. Called from one thread, once an interval."""

    def observe(self, value: float) -> None:
        """The value of the interval that has just ended. Never negative."""
        ...

    def predict(self) -> float:
        """The value expected of the next interval; also before anything was observed (then 0)."""
        ...
