"""Routers of several frontends that tell each other what they route choose as one router would."""

from __future__ import annotations

from typing import Any

import pytest

from dynamo_core.contracts import ForeignRequest, ModelCard, Route, RouterContext, RouteRequest, WorkerView
from dynamo_core.testing.clock import FakeClock
from dynamo_kv_router.router import KvRouter

SIZE = 16


class Pair:
    """Two routers for the same workers; what one routes, the other is told at once."""

    def __init__(self, count: int = 2, workers: int = 4, *, kv_events: bool = True) -> None:
        self.clock = FakeClock()
        card = ModelCard(name="m", path="", block_size=SIZE, total_kv_blocks=1000, kv_events=kv_events)
        self.views = {worker: WorkerView(worker, card) for worker in range(1, workers + 1)}
        context = RouterContext(model="m", block_size=SIZE, clock=self.clock)
        self.routers = [KvRouter(None, context) for _ in range(count)]
        for router in self.routers:
            for view in self.views.values():
                router.worker_added(view)
        self.foreign: dict[RouteRequest, ForeignRequest] = {}

    def ask(self, which: int, tokens: list[int]) -> tuple[RouteRequest, Route]:
        request = RouteRequest(id="r", token_ids=tokens)
        (route,) = self.routers[which].select([request], self.views)
        assert isinstance(route, Route)
        assert route.note is not None
        foreign = self.foreign[request] = ForeignRequest(
            id="f", token_ids=(), prompt_tokens=len(tokens), overlap_blocks=route.overlap_blocks, note=route.note()
        )
        for other in self.others(which):
            other.routed_elsewhere(foreign, route.worker_id)
        return request, route

    def tell(self, which: int, method: str, request: RouteRequest, worker: int, *more: Any) -> None:
        getattr(self.routers[which], method)(request, worker, *more)
        for other in self.others(which):
            getattr(other, method)(self.foreign[request], worker, *more)

    def others(self, which: int) -> list[KvRouter]:
        return [router for index, router in enumerate(self.routers) if index != which]

    def state(self, which: int) -> Any:
        return self.routers[which].state()


def prompt(number: int, blocks: int = 8) -> list[int]:
    return list(range(number * 10_000, number * 10_000 + SIZE * blocks))


def test_two_routers_spread_as_one_would() -> None:
    pair, alone = Pair(2), Pair(1)
    for number in range(16):
        pair.ask(number % 2 and 0 if number < 12 else 1, prompt(number))  # skewed: one gets most of it
        alone.ask(0, prompt(number))
    for which in (0, 1):
        shared = {worker: account["requests"] for worker, account in pair.state(which)["workers"].items()}
        assert shared == {worker: account["requests"] for worker, account in alone.state(0)["workers"].items()}
        assert set(shared.values()) == {4}


def test_a_prefix_that_was_just_sent_elsewhere_is_counted_on() -> None:
    pair = Pair()
    _, first = pair.ask(0, prompt(1, blocks=40))
    _, second = pair.ask(1, [*prompt(1, blocks=40), 7, 8])
    assert (second.worker_id, second.overlap_blocks) == (first.worker_id, 40)


def test_without_kv_events_what_others_sent_is_believed_to_be_there() -> None:
    pair = Pair(kv_events=False)
    request, first = pair.ask(0, prompt(1, blocks=40))
    pair.tell(0, "first_token", request, first.worker_id)
    pair.tell(0, "finished", request, first.worker_id, "completed")
    pair.clock.advance(5)
    _, second = pair.ask(1, prompt(1, blocks=40))
    assert (second.worker_id, second.overlap_blocks) == (first.worker_id, 40)


def test_the_books_are_empty_when_all_is_over() -> None:
    pair = Pair()
    asked = [pair.ask(number % 2, prompt(number)) for number in range(10)]
    for number, (request, route) in enumerate(asked):
        pair.clock.advance(0.05)
        if number % 3:
            pair.tell(number % 2, "first_token", request, route.worker_id)
    for number, (request, route) in enumerate(asked):
        pair.tell(number % 2, "finished", request, route.worker_id, "completed")
    for which in (0, 1):
        assert pair.state(which)["requests"] == 0
        assert all(not account["requests"] and not account["wait_ms"] for account in pair.state(which)["workers"].values())


def test_what_another_router_says_need_not_be_understood() -> None:
    pair = Pair()
    for number, note in enumerate((None, "text", [1, "x", None], {"a": 1})):
        foreign = ForeignRequest(id="f", token_ids=(), prompt_tokens=100, dp_rank=number % 2, note=note)
        pair.routers[0].routed_elsewhere(foreign, 1)
        pair.routers[0].routed_elsewhere(foreign, 99)
    assert pair.state(0)["workers"][1]["requests"] == 2, "rank 1 does not exist"


@pytest.mark.parametrize(("kv_events", "blocks"), [(True, 128), (False, 2048)])
def test_a_note_is_bounded(kv_events: bool, blocks: int) -> None:
    pair = Pair(kv_events=kv_events)
    (route,) = pair.routers[0].select([RouteRequest(id="r", token_ids=range(SIZE * 5000))], pair.views)
    assert isinstance(route, Route)
    assert route.note is not None
    assert len(route.note()) == blocks
