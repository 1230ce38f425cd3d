"""The choice and its explanation, against the plain way to make them: go through all places for each question."""

from __future__ import annotations

import random
from math import inf
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from dynamo_core.contracts import ModelCard, WorkerView
from dynamo_kv_router.choice import Chooser, explain
from dynamo_kv_router.cost import Clock, LoadRow, costs
from dynamo_kv_router.load import PlaceLoad
from dynamo_kv_router.speed import PrefillSpeed
from dynamo_kv_router.weights import Weights

CARD = ModelCard(name="m", path="", block_size=16, total_kv_blocks=1000)

prices = st.lists(st.sampled_from([1.5, 2.0, 2.25, 7.0]) | st.floats(0.0, 1e6), min_size=1, max_size=12)


def places(count: int, seed: int) -> list[PlaceLoad]:
    """Some were never sent a request."""
    lots = random.Random(seed)
    made = [PlaceLoad(WorkerView(i, CARD)) for i in range(count)]
    for at, place in enumerate(made):
        place.place = at
        place.given = lots.choice([0, lots.randrange(1000)])
        place.requests = lots.randrange(9)
    return made


def plainly_chosen(price: list[float], candidates: list[PlaceLoad]) -> int:
    return min(range(len(price)), key=lambda i: (price[i], candidates[i].given, candidates[i].id, candidates[i].rank))


def plainly_explained(price: list[float], candidates: list[PlaceLoad], blocks: list[int], chosen: int) -> dict[str, Any]:
    order = sorted(range(len(price)), key=lambda i: (price[i], i))[:3]
    best = [
        {
            "worker": candidates[i].id,
            "cost_ms": price[i],
            "overlap_blocks": blocks[candidates[i].place],
            "requests": candidates[i].requests,
        }
        for i in order
    ]
    return {"cost_ms": price[chosen], "best": best}


@settings(max_examples=500, deadline=None)
@given(prices, st.integers(0, 2**32))
def test_the_cheapest_is_chosen_and_equal_ones_take_turns(price: list[float], seed: int) -> None:
    candidates, ranked = places(len(price), seed), sorted(price)
    chosen = Chooser(seed).choose(price, ranked, candidates, 0.0)
    assert chosen == plainly_chosen(price, candidates)
    blocks = [random.Random(seed + i).randrange(5) for i in range(len(price))]
    assert explain(price, ranked, candidates, blocks, chosen) == plainly_explained(price, candidates, blocks, chosen)


def plainly_priced(row: LoadRow, new: float, tokens: int, clock: Clock, speed: PrefillSpeed, affinity: float) -> float:
    left = row.busy_until - clock.now if row.busy_until else 0.0
    wait = speed.overhead_ms + (left if left > 0 else row.behind - left)
    room = min((tokens - row.room) * row.drain, row.stay) if tokens > row.room else 0.0
    (y1, y2, y3), (f1, f2, f3) = row.youth, clock.fading
    own = new * speed.token_ms
    return wait + room + own * (affinity + row.crowd + y1 * f1 + y2 * f2 + y3 * f3) + 0.0024 * row.load


loads = st.lists(st.tuples(st.integers(1, 20_000), st.integers(0, 3)), max_size=6)


@settings(max_examples=300, deadline=None)
@given(st.lists(loads, min_size=1, max_size=8), st.integers(0, 20_000), st.integers(0, 2**32))
def test_every_place_has_the_price_of_the_formula_to_the_last_bit(
    fleet: list[list[tuple[int, int]]], tokens: int, seed: int
) -> None:
    """Else equal places would not be equal, and the same requests not sent to the same places."""
    lots, weights, speed = random.Random(seed), Weights(), PrefillSpeed()
    clock = Clock(weights, 0.0)
    made = places(len(fleet), seed)
    for place, running in zip(made, fleet, strict=True):
        for held, state in running:  # 0: ended before its first token, 1: waits, 2: streams, 3: ended
            place.begin(held, held, held * 0.02, clock.now)
            clock.tick(clock.now + lots.random() * 100)
            began = clock.now
            if state >= 2:
                place.first_token(held, held * 0.02, 0.0, clock, speed.token_ms)
            if state in (0, 3):
                place.end(held, held, held * 0.02, began if state == 3 else None, clock)
    clock.tick(clock.now + lots.random() * 1000)
    new = [lots.randrange(1, tokens + 2) for _ in fleet]
    rows = [place.row(weights, 1.0, 500.0) for place in made]
    assert costs(rows, new, tokens, clock, speed, 2.5, 0.0024) == [
        plainly_priced(row, new[row.place], tokens, clock, speed, 2.5) for row in rows
    ]


def test_prices_without_end_are_explained_too() -> None:
    candidates = places(4, 1)
    price = [inf, 3.0, inf, 3.0]
    best = explain(price, sorted(price), candidates, [0] * 4, 1)["best"]
    assert [shown["worker"] for shown in best] == [1, 3, 0]
