"""What every router must do, as tests. Needs pytest."""

from __future__ import annotations

import inspect
import random
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from dynamo_core.contracts import (
    Decision,
    EngineLoad,
    ForeignRequest,
    Hold,
    ModelCard,
    Outcome,
    Reject,
    Route,
    Router,
    RouterContext,
    RouteRequest,
    WorkerView,
)
from dynamo_core.errors import DynamoError
from dynamo_core.testing.clock import FakeClock

__all__ = ["RouterContract"]

_BLOCK = 16


class RouterContract(ABC):
    """Subclass it as ``TestMyRouter`` and implement :meth:`make_router`. Each test makes a router of its own."""

    follows_pins: bool = True
    """False for a router with a reason to ignore the worker that a client names."""

    @abstractmethod
    def make_router(self, context: RouterContext) -> Router: ...

    def start(self) -> tuple[Router, FakeClock]:
        clock = FakeClock()
        return self.make_router(RouterContext(model="m", block_size=_BLOCK, clock=clock, seed=1)), clock

    def workers(self, *ids: int) -> dict[int, WorkerView]:
        card = ModelCard(name="m", path="", block_size=_BLOCK, total_kv_blocks=1000)
        return {worker: WorkerView(worker, card, EngineLoad(kv_total_blocks=1000)) for worker in ids}

    def request(self, id: str = "r", tokens: int = 40, **values: Any) -> RouteRequest:
        return RouteRequest(id=id, token_ids=list(range(tokens)), max_tokens=16, **values)

    def tell(self, router: Router, method: str, *args: Any) -> None:
        call = getattr(router, method, None)
        if call is not None:
            call(*args)

    def chosen(
        self, router: Router, requests: Sequence[RouteRequest], workers: Mapping[int, WorkerView]
    ) -> Sequence[Decision | DynamoError]:
        decisions = router.select(requests, workers)
        assert len(decisions) == len(requests), "one decision a request, in order"
        for request, decision in zip(requests, decisions, strict=True):
            assert isinstance(decision, (Route, Hold, DynamoError)), f"{decision!r} is no decision"
            if isinstance(decision, Route):
                assert decision.worker_id in workers, "a router chooses among the workers that it is offered"
                assert decision.worker_id not in request.excluded, "a worker that failed the request is not chosen again"
        return decisions

    def finish(self, router: Router, request: RouteRequest, decision: Any, outcome: Outcome = "completed") -> None:
        if isinstance(decision, Route):
            self.tell(router, "finished", request, decision.worker_id, outcome)

    # --- tests ---------------------------------------------------------------------------------------------------------------

    def test_it_answers_each_request_of_a_batch(self) -> None:
        router, _ = self.start()
        workers = self.workers(1, 2, 3)
        for count in (1, 2, 17):
            requests = [self.request(f"{count}-{number}", 10 + number) for number in range(count)]
            for request, decision in zip(requests, self.chosen(router, requests, workers), strict=True):
                self.finish(router, request, decision)

    def test_without_workers_it_holds_or_refuses(self) -> None:
        router, _ = self.start()
        (decision,) = self.chosen(router, [self.request()], {})
        assert not isinstance(decision, Route)

    def test_it_leaves_out_workers_that_failed_the_request(self) -> None:
        router, _ = self.start()
        workers = self.workers(1, 2, 3)
        for number in range(6):
            request = self.request(f"r{number}", excluded=frozenset({1, 3}))
            (decision,) = self.chosen(router, [request], workers)
            self.finish(router, request, decision)
        (decision,) = self.chosen(router, [self.request(excluded=frozenset({1, 2, 3}))], workers)
        assert not isinstance(decision, Route)

    def test_it_follows_the_client_that_names_a_worker(self) -> None:
        if not self.follows_pins:
            return
        router, _ = self.start()
        for pinned in (2, 3, 1):
            request = self.request(f"p{pinned}", pinned=pinned)
            (decision,) = self.chosen(router, [request], self.workers(1, 2, 3))
            assert isinstance(decision, Route)
            assert decision.worker_id == pinned
            self.finish(router, request, decision)

    def test_workers_may_come_and_go_at_any_time(self) -> None:
        router, clock = self.start()
        lots = random.Random(7)
        workers = self.workers(1, 2)
        for worker in workers.values():
            self.tell(router, "worker_added", worker)
        running: list[tuple[RouteRequest, Any]] = []
        for number in range(200):
            clock.advance(lots.random())
            event = lots.random()
            if event < 0.1:
                (worker,) = self.workers(10 + number).values()
                workers[worker.id] = worker
                self.tell(router, "worker_added", worker)
            elif event < 0.2 and len(workers) > 1:
                gone = lots.choice(sorted(workers))
                del workers[gone]
                self.tell(router, "worker_removed", gone)
            elif event < 0.4 and running:
                request, decision = running.pop(lots.randrange(len(running)))
                self.finish(router, request, decision, lots.choice(("completed", "cancelled", "failed", "migrated")))
            else:
                request = self.request(f"r{number}", lots.randrange(1, 200))
                (decision,) = self.chosen(router, [request], workers)
                if isinstance(decision, Route):
                    if lots.random() < 0.7:
                        self.tell(router, "first_token", request, decision.worker_id)
                    running.append((request, decision))
        for request, decision in running:
            self.finish(router, request, decision)

    def test_it_is_told_of_losses_and_unknown_workers_without_harm(self) -> None:
        router, _ = self.start()
        self.tell(router, "kv_lost", 99, 0)
        self.tell(router, "worker_removed", 99)
        request = self.request()
        self.tell(router, "finished", request, 99, "failed")
        (decision,) = self.chosen(router, [request], self.workers(1))
        self.finish(router, request, decision)
        self.finish(router, request, decision)  # a second time changes nothing

    def test_a_question_is_answered_and_books_nothing(self) -> None:
        router, _ = self.start()
        query = getattr(router, "query", None)
        if query is None or inspect.iscoroutinefunction(query):
            return
        workers = self.workers(1, 2, 3)
        for worker in workers.values():
            self.tell(router, "worker_added", worker)
        state = getattr(router, "state", dict)
        before: Any = state()
        for pinned in (None, 2):
            decision = query(self.request(pinned=pinned, excluded=frozenset({3})), workers)
            assert isinstance(decision, (Route, Hold, Reject)), f"{decision!r} is no decision"
            if isinstance(decision, Route):
                assert decision.worker_id in (1, 2), "a question has the same workers as a request"
        assert state() == before, "a question changes nothing"

    def test_it_is_told_of_other_frontends_requests_without_harm(self) -> None:
        router, _ = self.start()
        if not hasattr(router, "routed_elsewhere"):
            return
        workers = self.workers(1, 2)
        for worker in workers.values():
            self.tell(router, "worker_added", worker)
        for note in (None, [1, 2, 3], "anything"):
            request = ForeignRequest(id="f", token_ids=(), prompt_tokens=100, overlap_blocks=2, note=note)
            for worker_id in (1, 99):
                self.tell(router, "routed_elsewhere", request, worker_id)
                self.tell(router, "first_token", request, worker_id)
                self.tell(router, "finished", request, worker_id, "completed")
        (decision,) = self.chosen(router, [self.request()], workers)
        assert isinstance(decision, Route)

    def test_the_same_seed_and_the_same_story_give_the_same_choices(self) -> None:
        assert self._story() == self._story()

    def _story(self) -> list[Any]:
        router, clock = self.start()
        workers = self.workers(1, 2, 3)
        told = []
        for number in range(30):
            clock.advance(0.1)
            request = self.request(f"r{number}", 16 * (1 + number % 5))
            (decision,) = self.chosen(router, [request], workers)
            told.append(decision.worker_id if isinstance(decision, Route) else None)
            if number % 2:
                self.finish(router, request, decision)
        return told
