"""Questions about where a request would go, and what caches have of it, leave everything as it was."""

from __future__ import annotations

import re
from typing import Any

import pytest

from dynamo_core.contracts import (
    KvBatch,
    KvRemoved,
    KvStored,
    ModelCard,
    OverlapScore,
    PotentialLoad,
    Reject,
    Route,
    RouterContext,
    RouteRequest,
    RoutingHints,
    WorkerView,
)
from dynamo_core.errors import InvalidRequest
from dynamo_core.kv import sequence_hashes
from dynamo_core.testing.clock import FakeClock
from dynamo_kv_router.config import KvRouterConfig
from dynamo_kv_router.router import KvRouter

SIZE = 16
PROMPT = list(range(640))
HASHES = tuple(sequence_hashes(PROMPT, SIZE))


def fleet(ranks: int = 1, *, kv_events: bool = True, **config: Any) -> tuple[KvRouter, dict[int, WorkerView]]:
    card = ModelCard(name="m", path="", block_size=SIZE, total_kv_blocks=1000, kv_events=kv_events, data_parallel_size=ranks)
    router = KvRouter(KvRouterConfig(**config), RouterContext(model="m", block_size=SIZE, clock=FakeClock()))
    return router, {worker: WorkerView(worker, card) for worker in (1, 2, 3)}


def ask(router: KvRouter, workers: dict[int, WorkerView], **more: Any) -> Route:
    route = router.query(RouteRequest(id="q", token_ids=PROMPT, **more), workers)
    assert isinstance(route, Route)
    return route


def test_the_answer_is_what_select_says_next() -> None:
    router, workers = fleet()
    for number in range(12):
        request = RouteRequest(id="r", token_ids=list(range(number * 1000, number * 1000 + 500)))
        asked = router.query(request, workers)
        (chosen,) = router.select([request], workers)
        assert isinstance(asked, Route)
        assert isinstance(chosen, Route)
        assert (asked.worker_id, asked.overlap_blocks, asked.explain) == (chosen.worker_id, chosen.overlap_blocks, chosen.explain)


def test_asking_changes_nothing() -> None:
    for kv_events in (True, False):
        router, workers = fleet(kv_events=kv_events)
        first = ask(router, workers)
        before = router.state()
        for _ in range(20):
            assert ask(router, workers) == first
        assert router.state() == before
        assert before["requests"] == before["blocks"] == 0


def test_pins_and_exclusions_hold_for_questions() -> None:
    router, workers = fleet()
    assert ask(router, workers, pinned=3).worker_id == 3
    assert ask(router, workers, excluded=frozenset({1, 2})).worker_id == 3


def test_overlaps_are_told_by_rank_and_tier() -> None:
    router, workers = fleet(ranks=2)
    for worker in workers.values():
        router.worker_added(worker)
    router.kv_events(KvBatch(1, 0, (KvStored(HASHES[:5]), KvStored(HASHES[5:9], "host"), KvStored(HASHES[9:10], "disk")), 1))
    router.kv_events(KvBatch(2, 0, (KvStored(HASHES),), 0))
    scores = router.overlap_scores(RouteRequest(id="q", token_ids=PROMPT), {1: workers[1], 2: workers[2]})
    assert scores == {
        1: [OverlapScore(dp_rank=0), OverlapScore(dp_rank=1, device=5, host=4, disk=1)],
        2: [OverlapScore(dp_rank=0, device=40), OverlapScore(dp_rank=1)],
    }


def test_the_outlook_has_by_rank_what_is_booked_and_what_the_prompt_would_add() -> None:
    router, workers = fleet(ranks=2)
    for worker in workers.values():
        router.worker_added(worker)
    router.kv_events(KvBatch(2, 0, (KvStored(HASHES[:10]),), 1))
    first = RouteRequest(id="a", token_ids=list(range(9000, 9160)), pinned=1)
    (sent,) = router.select([first], workers)
    assert isinstance(sent, Route)
    asked = RouteRequest(id="q", token_ids=PROMPT)
    loads = router.potential_loads(asked, {1: workers[1], 2: workers[2]})
    assert set(loads) == {1, 2}
    empty = PotentialLoad(prefill_tokens=640, decode_blocks=40)
    assert loads[2] == [empty, PotentialLoad(dp_rank=1, prefill_tokens=480, decode_blocks=40)]
    busy = PotentialLoad(dp_rank=sent.dp_rank or 0, prefill_tokens=800, decode_blocks=50, requests=1)
    assert busy in loads[1]
    router.first_token(first, 1)
    (after,) = [load for load in router.potential_loads(asked, workers)[1] if load.requests]
    assert (after.prefill_tokens, after.decode_blocks) == (640, 50)


def test_what_a_prompt_shares_with_one_that_runs_is_held_once() -> None:
    router, workers = fleet()
    for worker in workers.values():
        router.worker_added(worker)
    router.kv_events(KvBatch(2, 0, (KvStored(HASHES),)))
    running = RouteRequest(id="a", token_ids=PROMPT, pinned=2)
    router.select([running], workers)
    (load,) = router.potential_loads(running, workers)[2]
    assert load.decode_blocks == 40 + 8  # seen in pieces of 256 tokens, of which there are two


def test_known_blocks_make_another_routers_index() -> None:
    router, workers = fleet(ranks=2)
    for worker in workers.values():
        router.worker_added(worker)
    router.kv_events(KvBatch(1, 0, (KvStored(HASHES[:20]), KvRemoved(HASHES[15:20])), 0))
    router.kv_events(KvBatch(2, 0, (KvStored(HASHES[:5]), KvStored(HASHES[5:9], "host"), KvStored(HASHES[9:12], "disk")), 1))
    dumped = router.known_blocks()
    assert [(batch.worker_id, batch.dp_rank) for batch in dumped] == [(1, 0), (2, 1)]
    late, _ = fleet(ranks=2)
    for worker in workers.values():
        late.worker_added(worker)
    for batch in dumped:
        late.kv_events(batch)
    asked = RouteRequest(id="q", token_ids=PROMPT)
    assert late.overlap_scores(asked, workers) == router.overlap_scores(asked, workers)
    assert late.known_blocks() == dumped


def test_what_is_assumed_is_known_too() -> None:
    router, workers = fleet(kv_events=False)
    router.select([RouteRequest(id="a", token_ids=PROMPT, pinned=3)], workers)
    (batch,) = router.known_blocks()
    assert (batch.worker_id, batch.events) == (3, (KvStored(HASHES),))


def test_settings_for_one_request_change_that_choice_alone() -> None:
    router, workers = fleet(overlap_score_weight=1.0)
    for worker in workers.values():
        router.worker_added(worker)
    router.kv_events(KvBatch(2, 0, (KvStored(HASHES),)))
    for number in range(40):  # a little of what is new and much that runs
        router.select([RouteRequest(id=str(number), token_ids=[number] * 320, pinned=2)], workers)
    for weight in (0.0, 3.0):
        plain, _ = fleet(overlap_score_weight=weight)
        for worker in workers.values():
            plain.worker_added(worker)
        plain.kv_events(KvBatch(2, 0, (KvStored(HASHES),)))
        for number in range(40):
            plain.select([RouteRequest(id=str(number), token_ids=[number] * 320, pinned=2)], workers)
        overruled = ask(router, workers, hints=RoutingHints(settings={"overlap_score_weight": weight}))
        assert overruled == ask(plain, workers)
    assert ask(router, workers) == ask(router, workers, hints=RoutingHints(settings={"overlap_score_weight": 1.0}))
    drawn = {ask(router, workers, hints=RoutingHints(settings={"router_temperature": 1000.0})).worker_id for _ in range(60)}
    assert drawn == {1, 2, 3}
    assert len({ask(router, workers).worker_id for _ in range(20)}) == 1


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"router_ttl_secs": 3}, "'router_ttl_secs' of kv-router cannot be set for one request"),
        ({"router_temperature": -1}, "router_config_override: .*router_temperature"),
        ({"overlap_score_weight": "much"}, "router_config_override: .*overlap_score_weight"),
    ],
)
def test_settings_that_cannot_hold_for_one_request_reject_it(settings: dict[str, Any], expected: str) -> None:
    router, workers = fleet()
    request = RouteRequest(id="q", token_ids=PROMPT, hints=RoutingHints(settings=settings))
    (decision,) = router.select([request], workers)
    assert isinstance(decision, Reject)
    assert isinstance(decision.error, InvalidRequest)
    assert re.search(expected, decision.error.message)
