"""Observers of finished requests: one that raises is logged and counted, one that keeps raising is left out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

from dynamo_core.contracts.gate import RequestSummary
from dynamo_core.plugins.faults import Faults

__all__ = ["QUARANTINE_AFTER", "Observe", "Observer", "observation"]

_log = logging.getLogger(__name__)

Observe: TypeAlias = Callable[[RequestSummary], None]

QUARANTINE_AFTER = 10
"""Failures in a row after which an observer is no longer called."""


class Observer(NamedTuple):
    """One plugin's function that is told of finished requests."""

    plugin: str
    hook: str
    function: Observe


def observation(observers: Sequence[Observer], faults: Faults) -> Observe | None:
    """One callable that tells every observer and never raises; ``None`` without observers."""
    if not observers:
        return None
    isolated = tuple(_isolate(observer, faults) for observer in observers)
    if len(isolated) == 1:
        return isolated[0]

    def observe(summary: RequestSummary) -> None:
        for tell in isolated:
            tell(summary)

    return observe


def _isolate(observer: Observer, faults: Faults) -> Observe:
    plugin, hook, function = observer
    failures = 0

    def tell(summary: RequestSummary) -> None:
        nonlocal failures
        if failures >= QUARANTINE_AFTER:
            return
        try:
            function(summary)
        except Exception as error:  # noqa: BLE001  # an observer has no say in the request that it observes
            failures += 1
            faults.count(plugin, hook, error)
            if failures >= QUARANTINE_AFTER:
                _log.error(
                    "plugin %r raised in %s %d times in a row: it is not told of requests any more until a restart",
                    plugin, hook, failures,
                )  # fmt: skip
        else:
            failures = 0

    return tell
