"""Credits: what a cached block is worth in a price, where that is not simply what it saves."""

from __future__ import annotations

from collections.abc import Sequence

from dynamo_kv_router.caches import Overlap
from dynamo_kv_router.config import KvRouterConfig
from dynamo_kv_router.load import PlaceLoad

__all__ = ["Credit"]


class Credit:
    def __init__(self, credit: float, decay: float, block_size: int) -> None:
        self._credit = credit
        self._decay = decay
        self._block_size = block_size

    @classmethod
    def of(cls, config: KvRouterConfig, block_size: int) -> Credit | None:
        """``None`` where every block is worth what it saves, so that no price needs a second look."""
        credit, decay = config.router_kv_overlap_score_credit, config.router_kv_overlap_score_credit_decay
        return None if credit == 1 and not decay else cls(credit, decay, block_size)

    def priced(self, overlap: Overlap, whole_ms: float, places: Sequence[PlaceLoad], now: float) -> list[float]:
        """By place, the new tokens that a price is made of. ``whole_ms``: what the prompt costs where nothing is cached.

        A worker whose prompts wait longer than those of the least loaded one has its credit divided by
        ``1 + decay × that ÷ whole_ms``.
        """
        waits = [place.wait_ms(now) for place in places]
        least = min(waits)
        rate = self._decay / whole_ms if whole_ms else 0.0
        return [
            max(1.0, new + device * self._block_size * (1 - self._credit / (1 + rate * (wait - least))))
            for new, device, wait in zip(overlap.new_tokens, overlap.device, waits, strict=True)
        ]
