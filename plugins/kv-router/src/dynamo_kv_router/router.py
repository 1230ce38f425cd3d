"""The router: what is known of caches and loads, put together for each turn's requests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dynamo_core.contracts import Decision, Hold, KvBatch, Outcome, Route, RouterContext, RouteRequest, WorkerView
from dynamo_kv_router.books import Books
from dynamo_kv_router.caches import Caches
from dynamo_kv_router.choice import Chooser, explain
from dynamo_kv_router.config import KvRouterConfig
from dynamo_kv_router.cost import LoadRow, Weights, costs
from dynamo_kv_router.load import PlaceLoad

__all__ = ["KvRouter"]

_DEFAULT_BLOCK = 16
"""Tokens a block for the router's own bookkeeping when the engine has no blocks."""


class KvRouter:
    """Sends a request where its prefix is cached and the load allows. Implements :class:`~dynamo_core.contracts.Router`.

    A pure object: its only clock is the context's, it draws lots only above temperature 0, and it starts nothing.
    """

    def __init__(self, config: KvRouterConfig | None, context: RouterContext, *, weights: Weights | None = None) -> None:
        self.config = config or KvRouterConfig()
        self.weights = weights or Weights()
        self._affinity = self.config.overlap_score_weight * self.weights.affinity
        self._books = Books(self.config, self.weights, context.clock)
        self._caches = Caches(self.config, context.block_size or _DEFAULT_BLOCK)
        self._chooser = Chooser(self.config.router_temperature, context.seed)

    # --- the choice ----------------------------------------------------------------------------------------------------------

    def select(self, requests: Sequence[RouteRequest], workers: Mapping[int, WorkerView]) -> Sequence[Decision]:
        if workers.keys() - self._books.workers:
            for worker in workers.values():
                self.worker_added(worker)
        self._books.tick()
        self._caches.expire(self._books.clock.now)
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
        books, tokens = self._books, len(request.token_ids)
        prompt = self._caches.prompt(request)
        blocks, new_tokens = self._caches.overlap(prompt, tokens, books.places)
        price = costs(rows, new_tokens, tokens, books.clock, books.speed, self._affinity)
        chosen = self._chooser.choose(price, candidates)
        place = candidates[chosen]
        at = place.place
        why = explain(price, candidates, blocks, chosen)
        key = (request, place.id)
        books.begin(key, place, tokens, new_tokens[at], new_tokens[at] * books.speed.token_ms)
        self._caches.sent(key, place, prompt, books.clock.now)
        return Route(place.id, blocks[at], why)

    def _candidates(
        self, request: RouteRequest, workers: Mapping[int, WorkerView]
    ) -> tuple[Sequence[PlaceLoad], Sequence[LoadRow]]:
        places, rows = self._books.places, self._books.rows
        pinned, excluded = request.pinned, request.excluded
        if pinned is None and not excluded and len(workers) == len(self._books.workers):
            return places, rows
        fit = [i for i, place in enumerate(places) if place.id in workers and place.id not in excluded]
        if pinned is not None:
            fit = [i for i in fit if places[i].id == pinned] or fit
        return [places[i] for i in fit], [rows[i] for i in fit]

    # --- what becomes of it --------------------------------------------------------------------------------------------------

    def first_token(self, request: RouteRequest, worker_id: int) -> None:
        key = (request, worker_id)
        self._caches.computed(key)
        self._books.first_token(key)

    def finished(self, request: RouteRequest, worker_id: int, _outcome: Outcome) -> None:
        key = (request, worker_id)
        self._caches.computed(key)
        self._books.end(key)

    # --- workers and their caches --------------------------------------------------------------------------------------------

    def worker_added(self, worker: WorkerView) -> None:
        if not self._books.of(worker.id):
            self._caches.add(worker, self._books.add(worker))

    def worker_removed(self, worker_id: int) -> None:
        self._caches.remove(self._books.of(worker_id))
        self._books.remove(worker_id)

    def kv_events(self, batch: KvBatch) -> None:
        places = self._books.of(batch.worker_id)
        if batch.dp_rank < len(places):
            self._caches.take(batch, places[batch.dp_rank])

    def kv_lost(self, worker_id: int, dp_rank: int) -> None:
        places = self._books.of(worker_id)
        if dp_rank < len(places):
            self._caches.lost(places[dp_rank])

    def state(self) -> dict[str, Any]:
        """What the router believes now. O(places)."""
        books = self._books
        books.tick()
        now = books.clock.now
        return {
            "prefill": {"overhead_ms": round(books.speed.overhead_ms, 3), "token_ms": round(books.speed.token_ms, 6)},
            "blocks": len(self._caches),
            "requests": len(books),
            "workers": {place.name: self._account(place, now) for place in books.places},
        }

    def _account(self, place: PlaceLoad, now: float) -> dict[str, Any]:
        return {
            "requests": place.requests,
            "prefilling": place.prefilling,
            "prompt_tokens": place.tokens,
            "wait_ms": round(max(0.0, place.busy_until - now), 3),
            "blocks": self._caches.size(place),
            "kv_events": self._caches.listens(place),
        }
