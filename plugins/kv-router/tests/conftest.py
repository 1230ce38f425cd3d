"""What the router's tests share: a fleet of workers that a test plays."""

from __future__ import annotations

from collections import Counter
from typing import Any

import msgspec
import pytest

from dynamo_core.contracts import KvBatch, ModelCard, Route, RouterContext, RouteRequest, WorkerView
from dynamo_kv_router.config import KvRouterConfig
from dynamo_kv_router.router import KvRouter

SIZE = 16


class Fleet:
    """A router, its workers and a clock that stands still until told."""

    def __init__(self, count: int = 4, *, kv_events: bool = True, ranks: int = 1, **config: Any) -> None:
        self.now = 0.0
        self.card = card = ModelCard(
            name="m",
            path="",
            block_size=SIZE,
            total_kv_blocks=1000,
            max_num_batched_tokens=1000,
            kv_events=kv_events,
            data_parallel_size=ranks,
        )
        self.workers = {i: WorkerView(i, card) for i in range(1, count + 1)}
        context = RouterContext(model="m", block_size=SIZE, clock=lambda: self.now, seed=7)
        self.router = KvRouter(KvRouterConfig(**config), context)
        for worker in self.workers.values():
            self.router.worker_added(worker)
        self.made = 0
        self.seq: Counter[int] = Counter()

    def join(self, worker_id: int, **changes: Any) -> None:
        self.workers[worker_id] = WorkerView(worker_id, msgspec.structs.replace(self.card, **changes))
        self.router.worker_added(self.workers[worker_id])

    def leave(self, worker_id: int) -> None:
        del self.workers[worker_id]
        self.router.worker_removed(worker_id)

    def request(self, tokens: Any, **fields: Any) -> RouteRequest:
        self.made += 1
        return RouteRequest(id=str(self.made), token_ids=list(tokens), **fields)

    def send(self, tokens: Any, **fields: Any) -> tuple[RouteRequest, Route]:
        request = self.request(tokens, **fields)
        (decision,) = self.router.select([request], self.workers)
        assert isinstance(decision, Route)
        return request, decision

    def serve(self, tokens: Any, **fields: Any) -> Route:
        """Send, let it run and end."""
        request, route = self.send(tokens, **fields)
        self.now += 0.05
        self.router.first_token(request, route.worker_id)
        self.now += 0.5
        self.router.finished(request, route.worker_id, "completed")
        return route

    def tell(self, worker: int, *events: Any, rank: int = 0) -> None:
        self.router.kv_events(KvBatch(worker, self.seq[worker], events, rank))
        self.seq[worker] += 1


@pytest.fixture
def fleet() -> Fleet:
    return Fleet()


@pytest.fixture(scope="session")
def make_fleet() -> type[Fleet]:
    return Fleet
