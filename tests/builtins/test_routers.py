from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from dynamo_core.builtins import cache_aware, direct, least_loaded, least_tokens, power_of_two, prefix_hash, random, round_robin
from dynamo_core.contracts import Decision, Hold, ModelCard, Reject, Route, Router, RouterContext, RouteRequest, WorkerView
from dynamo_core.errors import InvalidRequest, NoInstances
from dynamo_core.hookspecs import hookimpl

ALL: list[Any] = [round_robin, random, power_of_two, least_loaded, least_tokens, prefix_hash, cache_aware]
CARD = ModelCard(name="m", path="")
Make = Callable[..., Router]


def make(module: Any, seed: int = 3) -> Router:
    (spec,) = module.dynamo_routers()
    router: Router = spec.factory(None, RouterContext(model="m", block_size=0, clock=lambda: 0.0, seed=seed))
    return router


def fleet(*inflight: int) -> dict[int, WorkerView]:
    return {i: WorkerView(i, CARD, inflight=count) for i, count in enumerate(inflight, 1)}


def requests(count: int, **fields: Any) -> list[RouteRequest]:
    return [RouteRequest(id=str(i), token_ids=(1,), **fields) for i in range(count)]


def ids(decisions: Any) -> list[int]:
    assert all(isinstance(decision, Route) for decision in decisions)
    return [decision.worker_id for decision in decisions]


@pytest.mark.parametrize("module", [*ALL, direct])
def test_each_is_a_plugin_of_its_own_name(module: Any) -> None:
    (spec,) = module.dynamo_routers()
    assert spec.name == module.__name__.rpartition(".")[2].replace("_", "-")
    assert hasattr(module.dynamo_routers, f"{hookimpl.project_name}_impl")


@pytest.mark.parametrize("module", ALL)
def test_pinned_workers_are_taken_and_excluded_ones_are_not(module: Any) -> None:
    router, workers = make(module), fleet(0, 0, 0)
    assert ids(router.select(requests(5, pinned=2), workers)) == [2] * 5
    assert set(ids(router.select(requests(20, excluded=frozenset({1, 3})), workers))) == {2}
    assert ids(router.select(requests(1, pinned=1, excluded=frozenset({1, 3})), workers)) == [2]
    assert ids(router.select(requests(3, pinned=9), workers))


@pytest.mark.parametrize("module", ALL)
def test_without_a_worker_requests_are_held(module: Any) -> None:
    router = make(module)
    held: list[Decision] = [*router.select(requests(1), {}), *router.select(requests(1, excluded=frozenset({1})), fleet(0))]
    assert all(isinstance(decision, Hold) for decision in held)


def test_round_robin_goes_round_though_workers_come_and_go() -> None:
    router = make(round_robin)
    workers = fleet(0, 0, 0)
    assert ids(router.select(requests(4), workers)) == [1, 2, 3, 1]
    del workers[2]
    assert ids(router.select(requests(2), workers)) == [3, 1]
    workers[2] = WorkerView(2, CARD)
    assert ids(router.select(requests(2), workers)) == [2, 3]


def test_random_reaches_all_and_repeats_with_the_seed() -> None:
    workers = fleet(0, 0, 0, 0)
    first = ids(make(random).select(requests(200), workers))
    assert first == ids(make(random).select(requests(200), workers))
    assert first != ids(make(random, seed=4).select(requests(200), workers))
    assert min(Counter(first).values()) > 25


def test_least_loaded_fills_up_the_emptiest_within_a_turn_too() -> None:
    assert ids(make(least_loaded).select(requests(5), fleet(3, 0, 1))) == [2, 3, 2, 3, 2]


def test_least_loaded_takes_turns_among_idle_workers() -> None:
    router, workers = make(least_loaded), fleet(0, 0, 0)
    assert [ids(router.select(requests(1), workers))[0] for _ in range(6)] == [1, 2, 3, 1, 2, 3]


def test_least_tokens_weighs_prompts_by_their_length() -> None:
    workers = fleet(1, 9, 1)
    for worker, tokens in zip(workers.values(), (500, 90, 100), strict=True):
        worker.inflight_tokens = tokens
    batch = [RouteRequest(id=str(tokens), token_ids=range(tokens)) for tokens in (50, 1000, 10, 10)]
    assert ids(make(least_tokens).select(batch, workers)) == [2, 3, 2, 2]


@pytest.mark.parametrize("module", [least_tokens, cache_aware, prefix_hash])
def test_what_other_frontends_run_there_counts(module: Any) -> None:
    workers = fleet(1, 1)
    workers[1].inflight_elsewhere, workers[1].inflight_tokens_elsewhere = 50, 5000
    assert ids(make(module).select(requests(5), workers)) == [2] * 5


def test_least_tokens_takes_turns_among_idle_workers() -> None:
    router, workers = make(least_tokens), fleet(0, 0, 0)
    assert [ids(router.select(requests(1), workers))[0] for _ in range(6)] == [1, 2, 3, 1, 2, 3]


def test_power_of_two_avoids_the_busiest_and_evens_out_a_turn() -> None:
    router = make(power_of_two)
    assert 2 not in ids(router.select(requests(50), fleet(0, 500, 0)))
    spread = Counter(ids(router.select(requests(300), fleet(0, 0, 0))))
    assert max(spread.values()) - min(spread.values()) < 15
    assert ids(router.select(requests(2), fleet(7))) == [1, 1]


def test_direct_takes_the_named_worker_or_refuses() -> None:
    router, workers = make(direct), fleet(0, 0)
    batch = [*requests(1, pinned=2), *requests(1), *requests(1, pinned=9), *requests(1, pinned=1, excluded=frozenset({1}))]
    named, unnamed, unknown, failed = router.select(batch, workers)
    assert isinstance(named, Route)
    assert named.worker_id == 2
    assert isinstance(unnamed, Reject)
    assert isinstance(unnamed.error, InvalidRequest)
    assert isinstance(unknown, Reject)
    assert isinstance(unknown.error, NoInstances)
    assert isinstance(failed, Reject)
