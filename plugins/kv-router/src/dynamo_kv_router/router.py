"""The router: what is known of caches and loads, put together for each turn's requests."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from typing import Any

from dynamo_core.contracts import (
    Decision,
    Hold,
    KvBatch,
    KvCleared,
    KvRemoved,
    KvStored,
    Outcome,
    Route,
    RouterContext,
    RouteRequest,
    WorkerView,
)
from dynamo_core.kv import HashCache, PromptHashes
from dynamo_kv_router.config import KvRouterConfig
from dynamo_kv_router.cost import Clock, LoadRow, Weights, costs
from dynamo_kv_router.index import PrefixIndex, slots_of
from dynamo_kv_router.load import Observation, WorkerLoad
from dynamo_kv_router.pending import PendingPrompts
from dynamo_kv_router.speed import MeanStay, PrefillSpeed

__all__ = ["KvRouter"]

_DEFAULT_BLOCK = 16
"""Tokens a block for the router's own bookkeeping when the engine has no blocks."""
_EXPLAINED = 3
_EXPIRY_EVERY_MS = 1000.0


class _Sent:
    """A request on a worker, from ``select`` to ``finished``."""

    __slots__ = ("at", "first_token", "new_tokens", "own_ms", "prompt", "tokens", "worker")

    def __init__(self, worker: WorkerLoad, tokens: int, new_tokens: int, own_ms: float, at: float, prompt: PromptHashes) -> None:
        self.worker = worker
        self.tokens = tokens
        self.new_tokens = new_tokens
        self.own_ms = own_ms
        self.at = at
        self.prompt = prompt
        self.first_token: float | None = None


_Key = tuple[RouteRequest, int]


class KvRouter:
    """Sends a request where its prefix is cached and the load allows. Implements :class:`~dynamo_core.contracts.Router`.

    A pure object: its only clock is the context's, it draws lots only above temperature 0, and it starts nothing.
    """

    def __init__(self, config: KvRouterConfig | None, context: RouterContext, *, weights: Weights | None = None) -> None:
        self.config = config or KvRouterConfig()
        self.weights = weights or Weights()
        self._block_size = context.block_size or _DEFAULT_BLOCK
        self._seconds = context.clock
        self._clock = Clock(self.weights, context.clock() * 1000)
        self._lots = random.Random(context.seed)
        self._speed = PrefillSpeed()
        self._index = PrefixIndex()
        self._hashes = HashCache()
        self._pending = PendingPrompts()
        self._sent: dict[_Key, _Sent] = {}
        self._known: dict[int, WorkerLoad] = {}
        self._workers: list[WorkerLoad] = []
        self._rows: list[LoadRow] = []
        self._places: dict[int, int] = {}
        """Of each slot of the index: its worker's place in the two lists above."""
        self._assumed: dict[int, int] = {}
        """Workers without KV events and the slot that says what they should have."""
        self._expire_at = 0.0
        self._given = 0
        self._stay = MeanStay()

    # --- the choice ----------------------------------------------------------------------------------------------------------

    def select(self, requests: Sequence[RouteRequest], workers: Mapping[int, WorkerView]) -> Sequence[Decision]:
        if workers.keys() - self._known.keys():
            for worker in workers.values():
                self.worker_added(worker)
        self._tick()
        if self._clock.now >= self._expire_at:
            self._expire_at = self._clock.now + _EXPIRY_EVERY_MS
            for slot in self._assumed.values():
                self._index.expire(slot, self._clock.now)
        if len(requests) == 1:
            return [self._place(requests[0], workers)]
        # Longest first: the others find their place around them, and first tokens of a burst come sooner.
        order = sorted(range(len(requests)), key=lambda i: -len(requests[i].token_ids))
        decisions: dict[int, Decision] = {i: self._place(requests[i], workers) for i in order}
        return [decisions[i] for i in range(len(requests))]

    def _place(self, request: RouteRequest, workers: Mapping[int, WorkerView]) -> Decision:
        candidates, rows = self._candidates(request, workers)
        if not candidates:
            return Hold(reason="no worker is left for this request")
        tokens = len(request.token_ids)
        prompt = PromptHashes(request.token_ids, self._block_size, lora=request.lora, salt=request.cache_salt, cache=self._hashes)
        overlaps, own = self._weigh(prompt, tokens)
        affinity = self.config.overlap_score_weight * self.weights.affinity
        price = costs(rows, own, tokens, self._clock, self._speed, affinity)
        chosen = self._choose(price, candidates)
        worker = candidates[chosen]
        blocks = overlaps[worker.place]
        explain = _explain(price, candidates, overlaps, chosen)
        self._send(request, worker, prompt, blocks, own[worker.place])
        return Route(worker.id, blocks, explain)

    def _candidates(
        self, request: RouteRequest, workers: Mapping[int, WorkerView]
    ) -> tuple[Sequence[WorkerLoad], Sequence[LoadRow]]:
        pinned, excluded = request.pinned, request.excluded
        if pinned is None and not excluded and len(workers) == len(self._workers):
            return self._workers, self._rows
        fit = [i for i, w in enumerate(self._workers) if w.id in workers and w.id not in excluded]
        if pinned is not None:
            fit = [i for i in fit if self._workers[i].id == pinned] or fit
        return [self._workers[i] for i in fit], [self._rows[i] for i in fit]

    def _weigh(self, prompt: PromptHashes, tokens: int) -> tuple[list[int], list[float]]:
        """By place: leading blocks that a worker has, or will have before this request could begin, and what is left to compute
        in milliseconds."""
        token_ms, size, places = self._speed.token_ms, self._block_size, self._places
        overlaps = [0] * len(self._workers)
        own = [tokens * token_ms] * len(overlaps)
        for match in self._index.match(prompt):
            rest = max(1, tokens - match.blocks * size) * token_ms
            for slot in slots_of(match.slots):
                place = places[slot]
                overlaps[place] = match.blocks
                own[place] = rest
        for promise in self._pending.match(prompt):
            worker = self._known.get(promise.worker_id)
            if worker is not None and promise.blocks > overlaps[worker.place]:
                overlaps[worker.place] = promise.blocks
                own[worker.place] = max(1, tokens - promise.blocks * size) * token_ms
        return overlaps, own

    def _choose(self, price: list[float], candidates: Sequence[WorkerLoad]) -> int:
        least = min(price)
        if self.config.router_temperature > 0:
            return self._draw(price, least)
        if price.count(least) == 1:
            return price.index(least)
        # Those to which a request was sent longest ago come first: idle workers take turns.
        return min((i for i, cost in enumerate(price) if cost == least), key=lambda i: (candidates[i].given, candidates[i].id))

    def _draw(self, price: list[float], least: float) -> int:
        """Softmax of the costs, scaled to their range."""
        scale = (max(price) - least) * self.config.router_temperature
        shares = [math.exp((least - cost) / scale) for cost in price] if scale else [1.0] * len(price)
        return self._lots.choices(range(len(price)), shares)[0]

    # --- the books -----------------------------------------------------------------------------------------------------------

    def _send(self, request: RouteRequest, worker: WorkerLoad, prompt: PromptHashes, blocks: int, own_ms: float) -> None:
        now = self._clock.now
        key = (request, worker.id)
        if key in self._sent:
            self.finished(request, worker.id, "failed")
        tokens = len(request.token_ids)
        if not worker.prefilling:
            own_ms += self._speed.overhead_ms
        self._sent[key] = _Sent(worker, tokens, max(1, tokens - blocks * self._block_size), own_ms, now, prompt)
        worker.begin(tokens, own_ms, now)
        self._given += 1
        worker.given = self._given
        self._pending.add(key, worker.id, prompt)
        slot = self._assumed.get(worker.id)
        if slot is not None:
            hashes = prompt.upto(prompt.count)
            expiry = now + self.config.router_ttl_secs * 1000
            self._index.stored(slot, hashes, expiry, keep=self.config.router_prune_target_ratio)
        self._changed(worker)

    def first_token(self, request: RouteRequest, worker_id: int) -> None:
        sent = self._sent.get((request, worker_id))
        if sent is None or sent.first_token is not None:
            return
        self._tick()
        sent.first_token = self._clock.now
        self._pending.discard((request, worker_id), sent.prompt)
        self._learn(sent.worker.first_token(sent.new_tokens, sent.own_ms, sent.at, self._clock))
        self._changed(sent.worker)

    def finished(self, request: RouteRequest, worker_id: int, _outcome: Outcome) -> None:
        sent = self._sent.pop((request, worker_id), None)
        if sent is None:
            return
        self._tick()
        self._pending.discard((request, worker_id), sent.prompt)
        self._learn(sent.worker.measured(self._clock.now))
        if sent.first_token is not None:
            self._stay.observe(self._clock.now - sent.at)
        sent.worker.end(sent.tokens, sent.own_ms, sent.first_token, self._clock)
        self._changed(sent.worker)

    def _learn(self, seen: Observation | None) -> None:
        if seen is not None:
            self._speed.observe(seen.tokens, seen.ms)

    def _tick(self) -> None:
        factors = self._clock.tick(self._seconds() * 1000)
        if factors is not None:
            for worker in self._workers:
                worker.fade(factors)
            self._rows = [self._row(worker) for worker in self._workers]

    def _changed(self, worker: WorkerLoad) -> None:
        if self._known.get(worker.id) is worker:
            self._rows[worker.place] = self._row(worker)

    def _row(self, worker: WorkerLoad) -> LoadRow:
        return worker.row(self.weights, self.config.overlap_score_weight, self._stay.ms)

    # --- workers and their caches --------------------------------------------------------------------------------------------

    def worker_added(self, worker: WorkerView) -> None:
        if worker.id in self._known:
            return
        load = self._known[worker.id] = WorkerLoad(worker)
        if not (self.config.use_kv_events and worker.card.kv_events):
            limit = min(self.config.router_max_tree_size, worker.card.total_kv_blocks or self.config.router_max_tree_size)
            slot = self._index.open(limit, expiring=True)
            self._assumed[worker.id] = load.slots[0] = slot
        self._line_up()

    def worker_removed(self, worker_id: int) -> None:
        load = self._known.pop(worker_id, None)
        if load is None:
            return
        self._assumed.pop(worker_id, None)
        for slot in load.slots.values():
            self._index.close(slot)
        self._line_up()

    def _line_up(self) -> None:
        """The workers changed: by id in the lists, so that nothing depends on the order of their coming."""
        self._workers = sorted(self._known.values(), key=lambda worker: worker.id)
        for place, worker in enumerate(self._workers):
            worker.place = place
        self._places = {slot: worker.place for worker in self._workers for slot in worker.slots.values()}
        self._rows = [self._row(worker) for worker in self._workers]

    def kv_events(self, batch: KvBatch) -> None:
        """Only blocks in the device's own memory are indexed; slower tiers are not counted as cached."""
        worker = self._known.get(batch.worker_id)
        if worker is None or batch.worker_id in self._assumed:
            return
        slot = worker.slots.get(batch.dp_rank)
        if slot is None:
            slot = worker.slots[batch.dp_rank] = self._index.open(self.config.router_max_tree_size)
            self._places[slot] = worker.place
        for event in batch.events:
            if isinstance(event, KvCleared):
                self._index.clear(slot)
            elif event.tier != "device":
                continue
            elif isinstance(event, KvStored):
                self._index.stored(slot, event.seq_hashes, keep=self.config.router_prune_target_ratio)
            elif isinstance(event, KvRemoved):
                self._index.removed(slot, event.seq_hashes)

    def kv_lost(self, worker_id: int, dp_rank: int) -> None:
        worker = self._known.get(worker_id)
        slot = worker.slots.get(dp_rank) if worker is not None else None
        if slot is not None and worker_id not in self._assumed:
            self._index.clear(slot)

    def state(self) -> dict[str, Any]:
        """What the router believes now. O(workers)."""
        now = self._seconds() * 1000
        return {
            "prefill": {"overhead_ms": round(self._speed.overhead_ms, 3), "token_ms": round(self._speed.token_ms, 6)},
            "blocks": len(self._index),
            "requests": len(self._sent),
            "workers": {
                worker.id: {
                    "requests": worker.requests,
                    "prefilling": worker.prefilling,
                    "prompt_tokens": worker.tokens,
                    "wait_ms": round(max(0.0, worker.busy_until - now), 3),
                    "blocks": sum(self._index.size(slot) for slot in worker.slots.values()),
                    "kv_events": worker.id not in self._assumed,
                }
                for worker in self._workers
            },
        }


def _explain(price: list[float], candidates: Sequence[WorkerLoad], overlaps: Sequence[int], chosen: int) -> dict[str, Any]:
    """The chosen worker and the cheapest three, with what speaks for them."""
    rest = price.copy()
    best: list[dict[str, Any]] = []
    for _ in range(min(_EXPLAINED, len(rest))):
        cost = min(rest)
        i = rest.index(cost)
        rest[i] = math.inf
        worker = candidates[i]
        blocks = overlaps[worker.place]
        best.append({"worker": worker.id, "cost_ms": cost, "overlap_blocks": blocks, "requests": worker.requests})
    return {"cost_ms": price[chosen], "best": best}
