from __future__ import annotations

from collections import Counter
from typing import Any

from dynamo_core.builtins.cache_aware import CacheAware, CacheAwareConfig
from dynamo_core.contracts import ModelCard, Route, RouterContext, RouteRequest, WorkerView

SIZE = 4


def router(**config: Any) -> CacheAware:
    return CacheAware(CacheAwareConfig(**config), RouterContext(model="m", block_size=SIZE, clock=lambda: 0.0))


def fleet(*inflight: int, blocks: int = 0) -> dict[int, WorkerView]:
    card = ModelCard(name="m", path="", block_size=SIZE, total_kv_blocks=blocks)
    return {i: WorkerView(i, card, inflight=count) for i, count in enumerate(inflight, 1)}


def prompt(family: int, blocks: int, shared: int = 0) -> RouteRequest:
    tokens = [*range(shared * SIZE), *range(family * 1000, family * 1000 + (blocks - shared) * SIZE)]
    return RouteRequest(id=f"{family}", token_ids=tokens)


def place(made: CacheAware, request: RouteRequest, workers: dict[int, WorkerView]) -> Route:
    (decision,) = made.select([request], workers)
    assert isinstance(decision, Route)
    return decision


def test_a_prompt_goes_where_most_of_it_went_before() -> None:
    made, workers = router(), fleet(0, 0, 0)
    first = place(made, prompt(1, 10), workers)
    assert place(made, prompt(1, 12), workers) == Route(first.worker_id, 10)
    assert place(made, prompt(2, 10), workers).worker_id != first.worker_id


def test_at_or_below_the_threshold_load_decides() -> None:
    made, workers = router(cache_threshold=0.5), fleet(0, 0)
    home = place(made, prompt(1, 10, shared=5), workers).worker_id
    assert place(made, prompt(2, 10, shared=5), workers).worker_id != home
    assert place(made, prompt(3, 9, shared=5), fleet(*(9 * (home == i) for i in (1, 2)))).overlap_blocks == 5


def test_cold_prompts_one_after_another_reach_every_worker() -> None:
    made, workers = router(), fleet(0, 0, 0, 0)
    assert Counter(place(made, prompt(i, 3), workers).worker_id for i in range(1, 9)) == {1: 2, 2: 2, 3: 2, 4: 2}


def test_a_worker_that_came_back_empty_is_not_flooded() -> None:
    made, workers = router(), fleet(0, 0)
    for family in range(1, 9):
        place(made, prompt(family, 5), workers)
    made.worker_removed(2)
    decisions = made.select([prompt(family, 5) for family in range(20, 40)], workers)
    assert set(Counter(decision.worker_id for decision in decisions if isinstance(decision, Route)).values()) == {10}


def test_out_of_balance_only_the_overloaded_lose_their_prompts() -> None:
    made = router(balance_abs_threshold=10, balance_rel_threshold=1.5)
    homes = {family: place(made, prompt(family, 5), fleet(0, 0, 0)).worker_id for family in (1, 2, 3)}
    assert set(homes.values()) == {1, 2, 3}
    family_of = {home: family for family, home in homes.items()}
    uneven = fleet(40, 8, 2)
    assert place(made, prompt(family_of[1], 5), uneven).worker_id == 3
    assert place(made, prompt(family_of[2], 5), uneven).worker_id == 2


def test_both_bounds_must_be_passed() -> None:
    made = router(balance_abs_threshold=10, balance_rel_threshold=2)
    home = place(made, prompt(1, 5), fleet(0, 0)).worker_id
    other = 3 - home
    loads = {home: 35, other: 20}
    assert place(made, prompt(1, 5), fleet(loads[1], loads[2])).worker_id == home
    loads = {home: 41, other: 20}
    assert place(made, prompt(1, 5), fleet(loads[1], loads[2])).worker_id == other


def test_a_hot_prompt_spreads_within_one_turn() -> None:
    made = router(balance_abs_threshold=3)
    decisions = made.select([prompt(1, 5) for _ in range(40)], fleet(0, 0, 0, 0))
    counts = Counter(decision.worker_id for decision in decisions if isinstance(decision, Route))
    assert len(counts) == 4
    assert max(counts.values()) - min(counts.values()) <= 4


def test_memory_is_bounded_by_the_setting_and_by_the_workers_cache() -> None:
    for made, blocks in ((router(max_tree_size=20 * SIZE), 0), (router(), 20)):
        workers = fleet(0, blocks=blocks)
        for family in range(1, 50):
            place(made, prompt(family, 7), workers)
        assert place(made, prompt(49, 7), workers).overlap_blocks == 7
        assert place(made, prompt(1, 7), workers).overlap_blocks == 0
        assert len(made._index) <= 20
