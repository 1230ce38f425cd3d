"""What the simulator's tests share: small traces, and a router that is told what to answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest

from dynamo_core.contracts import KvBatch, KvStored, Route, RouterContext, RouteRequest, WorkerView
from dynamo_core.simulator import Trace, TraceRequest

Row = tuple[float, int, int, Sequence[int]]


class ScriptedRouter:
    """Answers by ``decide`` (worker 1 by default) and writes down all that it hears, with the time in milliseconds."""

    def __init__(self, context: RouterContext, decide: Callable[..., Any] = lambda request: Route(1)) -> None:
        self.context = context
        self.decide = decide
        self.heard: list[tuple[Any, ...]] = []
        self.batches: list[KvBatch] = []

    def _now(self) -> float:
        return self.context.clock() * 1000

    def select(self, requests: Sequence[RouteRequest], workers: Mapping[int, WorkerView]) -> Sequence[Any]:
        self.heard.append(("select", self._now(), [request.id for request in requests]))
        return [self.decide(request) for request in requests]

    def first_token(self, request: RouteRequest, worker_id: int) -> None:
        self.heard.append(("first", self._now(), request.id, worker_id))

    def finished(self, request: RouteRequest, worker_id: int, outcome: str) -> None:
        self.heard.append((outcome, self._now(), request.id, worker_id))

    def kv_events(self, batch: KvBatch) -> None:
        self.batches.append(batch)
        stored = sum(len(event.seq_hashes) for event in batch.events if isinstance(event, KvStored))
        self.heard.append(("stored", self._now(), stored, batch.worker_id))


@pytest.fixture
def scripted() -> type[ScriptedRouter]:
    return ScriptedRouter


@pytest.fixture
def trace() -> Callable[..., Trace]:
    """From rows of milliseconds, prompt and output tokens, and block numbers."""

    def make(*rows: Row, block_size: int = 10) -> Trace:
        return Trace(tuple(TraceRequest(at, prompt, output, tuple(blocks)) for at, prompt, output, blocks in rows), block_size)

    return make
