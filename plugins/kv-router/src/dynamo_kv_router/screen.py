"""Who may get a request: pins, exclusions, taints and ranks, busy workers, and room in the queue."""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import TypeAlias

from dynamo_core.contracts import NO_HINTS, Hold, Reject, RouteRequest
from dynamo_core.errors import InvalidRequest, NoInstances, Overloaded
from dynamo_kv_router.config import KvRouterConfig
from dynamo_kv_router.load import PlaceLoad
from dynamo_kv_router.thresholds import BusyGate

__all__ = ["HELD", "Fit", "Screen", "takes_anyone"]

HELD = Hold(reason="every worker has enough to do")
_NOBODY = Hold(reason="no worker is left for this request")

Fit: TypeAlias = "list[int] | Hold | Reject | None"
"""Positions in the places; ``None``: all of them; else why there are none."""


class Screen:
    """``gate`` may change its thresholds at any time."""

    def __init__(self, config: KvRouterConfig, gate: BusyGate) -> None:
        self._gate = gate
        self._rejects = config.router_when_busy == "reject"
        self._queue_share = config.router_queue_threshold

    def fit(self, request: RouteRequest, offered: Container[int], places: Sequence[PlaceLoad], *, all_offered: bool) -> Fit:
        """One test where nothing is asked and nothing configured, else O(places)."""
        special = request.pinned is not None or bool(request.excluded) or request.hints is not NO_HINTS
        if not special and all_offered and self._gate.open and self._queue_share is None:
            return None
        fit = [i for i, place in enumerate(places) if place.id in offered and place.id not in request.excluded]
        if not fit:
            return _NOBODY
        if special:
            chosen = _as_asked(request, places, fit)
            if isinstance(chosen, Reject):
                return chosen
            fit = chosen
        return self._unburdened(places, fit)

    def closed(self, places: Sequence[PlaceLoad]) -> bool:
        """Whoever asks is held."""
        if not places:
            return False
        busy = not self._rejects and not self._gate.open and not self._gate.free(places)
        return busy or not self._has_room(places)

    def _unburdened(self, places: Sequence[PlaceLoad], fit: list[int]) -> Fit:
        if not self._gate.open:
            free = self._gate.free([places[i] for i in fit])
            if not free:
                return _overloaded() if self._rejects else HELD
            fit = [i for i in fit if places[i].id in free]
        return fit if self._has_room([places[i] for i in fit]) else HELD

    def _has_room(self, places: Sequence[PlaceLoad]) -> bool:
        share = self._queue_share
        return share is None or any(not place.batch or place.prefill_tokens <= share * place.batch for place in places)


def takes_anyone(request: RouteRequest) -> bool:
    """Where it finds no room, nobody else does."""
    hints = request.hints
    return request.pinned is None and not request.excluded and not hints.required_taints and hints.dp_rank is None


def _as_asked(request: RouteRequest, places: Sequence[PlaceLoad], fit: list[int]) -> list[int] | Reject:
    hints, pinned = request.hints, request.pinned
    if pinned is not None:
        fit = [i for i in fit if places[i].id == pinned] or fit
    if hints.required_taints:
        fit = [i for i in fit if hints.required_taints <= places[i].taints]
        if not fit:
            wanted = ", ".join(sorted(hints.required_taints))
            return Reject(NoInstances(f"No worker has all the required taints ({wanted}).", retry_after=1))
    if hints.dp_rank is not None:
        fit = [i for i in fit if places[i].rank == hints.dp_rank]
        if not fit:
            sentence = f"No worker has a data-parallel rank {hints.dp_rank}; ranks begin at 0."
            return Reject(InvalidRequest(sentence, param="dp_rank", code="invalid_value"))
    return fit


def _overloaded() -> Reject:
    return Reject(Overloaded("Every worker that could take this request is busy; try again later.", retry_after=1))
