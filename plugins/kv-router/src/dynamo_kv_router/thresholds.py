"""Which workers are busy, by thresholds that can be changed while the router runs."""

from __future__ import annotations

from collections.abc import Sequence

from dynamo_core.contracts import BusyThresholds
from dynamo_kv_router.load import PlaceLoad

__all__ = ["BusyGate"]


class BusyGate:
    """A worker is busy if all of its ranks are. A rank is busy when one of the thresholds is reached."""

    def __init__(self, thresholds: BusyThresholds) -> None:
        self.thresholds = thresholds

    @property
    def thresholds(self) -> BusyThresholds:
        return self._thresholds

    @thresholds.setter
    def thresholds(self, thresholds: BusyThresholds) -> None:
        self._thresholds = thresholds
        self.open = thresholds == BusyThresholds()
        """Nobody is ever busy."""

    def free(self, places: Sequence[PlaceLoad]) -> set[int]:
        """Ids of the workers that are not busy. 0.3 µs a place."""
        return {place.id for place in places if not self._busy(place)}

    def _busy(self, place: PlaceLoad) -> bool:
        limits = self._thresholds
        most = limits.active_prefill_tokens_threshold
        if most is not None and place.prefill_tokens >= most:
            return True
        share = limits.active_prefill_tokens_threshold_frac
        if share is not None and place.batch and place.prefill_tokens >= share * place.batch:
            return True
        share = limits.active_decode_blocks_threshold
        return share is not None and _occupied(place) >= share


def _occupied(place: PlaceLoad) -> float:
    """Share of the cache that running requests have: by the books, or by the worker's own reading, which knows of the requests of
    other frontends, if that is more."""
    share = place.held / place.capacity if place.capacity else 0.0
    load = place.view.load
    if load is not None and load.kv_total_blocks and not place.several:
        share = max(share, load.kv_used_blocks / load.kv_total_blocks)
    return share
