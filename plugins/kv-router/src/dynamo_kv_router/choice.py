"""From prices to a worker: the cheapest, or lots drawn; equal ones take turns."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any

from dynamo_kv_router.load import PlaceLoad

__all__ = ["Chooser", "explain"]

_EXPLAINED = 3


class Chooser:
    """Deterministic at temperature 0; above, repeatable with the seed."""

    def __init__(self, seed: int) -> None:
        self._lots = random.Random(seed)

    def choose(self, price: Sequence[float], ranked: Sequence[float], candidates: Sequence[PlaceLoad], temperature: float) -> int:
        """The position of the chosen one in both lists. ``ranked``: the prices, lowest first."""
        least = ranked[0]
        if temperature > 0:
            return self._draw(price, least, temperature)
        if len(ranked) == 1 or ranked[1] != least:
            return price.index(least)
        # Those to which a request was sent longest ago come first: idle workers take turns.
        return min(
            (i for i, cost in enumerate(price) if cost == least),
            key=lambda i: (candidates[i].given, candidates[i].id, candidates[i].rank),
        )

    def _draw(self, price: Sequence[float], least: float, temperature: float) -> int:
        """Softmax of the costs, scaled to their range."""
        scale = (max(price) - least) * temperature
        shares = [math.exp((least - cost) / scale) for cost in price] if scale else [1.0] * len(price)
        return self._lots.choices(range(len(price)), shares)[0]


def explain(
    price: Sequence[float], ranked: Sequence[float], candidates: Sequence[PlaceLoad], blocks: Sequence[int], chosen: int
) -> dict[str, Any]:
    """The chosen worker and the cheapest three, with what speaks for them."""
    best: list[dict[str, Any]] = []
    i, before = -1, -math.inf
    for cost in ranked[:_EXPLAINED]:
        i = price.index(cost, i + 1 if cost == before else 0)
        before = cost
        place = candidates[i]
        shown = {"worker": place.id, "cost_ms": cost, "overlap_blocks": blocks[place.place], "requests": place.requests}
        if place.several:
            shown["dp_rank"] = place.rank
        best.append(shown)
    return {"cost_ms": price[chosen], "best": best}
