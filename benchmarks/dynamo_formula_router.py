"""Dynamo's KV formula as a router, for reference: the simulator has to give Dynamo's own figures with it.

With Dynamo 1.6.1's defaults the lowest sum of prefill blocks and decode blocks wins. Prefill blocks: prompt tokens sent to the
worker and not yet answered by a first token, this prompt's among them, without what was cached. Decode blocks: distinct blocks
of all requests running there, with those that this one adds. Ties are drawn.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence

from dynamo_core.contracts import Decision, KvBatch, KvCleared, KvStored, Outcome, Route, RouterContext, RouteRequest, WorkerView
from dynamo_core.kv.hashing import sequence_hashes

__all__ = ["DynamoFormulaRouter"]


class _Worker:
    def __init__(self) -> None:
        self.cached: set[int] = set()
        self.prefill_tokens = 0
        self.blocks: Counter[int] = Counter()
        """Requests by the block that they hold."""


class DynamoFormulaRouter:
    def __init__(self, context: RouterContext) -> None:
        self._size = context.block_size
        self._lots = random.Random(context.seed)
        self._workers: dict[int, _Worker] = {}
        self._running: dict[RouteRequest, tuple[list[int], int]] = {}
        """Blocks held, and prompt tokens that count as prefill until the first token."""

    def worker_added(self, worker: WorkerView) -> None:
        self._workers[worker.id] = _Worker()

    def worker_removed(self, worker_id: int) -> None:
        """What it still runs is let go of in :meth:`finished`."""

    def select(self, requests: Sequence[RouteRequest], workers: Mapping[int, WorkerView]) -> Sequence[Decision]:
        return [self._place(request, workers) for request in requests]

    def _place(self, request: RouteRequest, workers: Mapping[int, WorkerView]) -> Route:
        tokens, size = len(request.token_ids), self._size
        hashes = sequence_hashes(request.token_ids, size)
        blocks = [*hashes, *([id(request)] if tokens % size else [])]
        best: list[tuple[int, int]] = []
        least = float("inf")
        for worker_id in workers:
            worker = self._workers[worker_id]
            overlap = next((i for i, name in enumerate(hashes) if name not in worker.cached), len(hashes))
            prefill = (worker.prefill_tokens + tokens - overlap * size) / size
            decode = len(worker.blocks) + sum(1 for name in blocks if name not in worker.blocks)
            cost = prefill + decode
            if cost < least:
                least, best = cost, []
            if cost == least:
                best.append((worker_id, overlap))
        worker_id, overlap = self._lots.choice(best)
        worker = self._workers[worker_id]
        worker.blocks.update(blocks)
        worker.prefill_tokens += tokens - overlap * size
        self._running[request] = (blocks, tokens - overlap * size)
        return Route(worker_id, overlap)

    def first_token(self, request: RouteRequest, worker_id: int) -> None:
        blocks, tokens = self._running[request]
        self._workers[worker_id].prefill_tokens -= tokens
        self._running[request] = (blocks, 0)

    def finished(self, request: RouteRequest, worker_id: int, _outcome: Outcome) -> None:
        blocks, tokens = self._running.pop(request)
        worker = self._workers[worker_id]
        worker.prefill_tokens -= tokens
        worker.blocks.subtract(blocks)
        for name in blocks:
            if not worker.blocks[name]:
                del worker.blocks[name]

    def kv_events(self, batch: KvBatch) -> None:
        cached = self._workers[batch.worker_id].cached
        for event in batch.events:
            if isinstance(event, KvCleared):
                cached.clear()
            elif isinstance(event, KvStored):
                cached.update(event.seq_hashes)
            else:
                cached.difference_update(event.seq_hashes)
