"""Questions about where a request would go, and what caches have of it, leave everything as it was."""

from __future__ import annotations

from typing import Any

from dynamo_core.contracts import KvBatch, KvStored, ModelCard, OverlapScore, Route, RouterContext, RouteRequest, WorkerView
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
