"""The router: what is known of caches and loads, put together for each turn's requests."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from dynamo_core.contracts import (
    BusyThresholds,
    Decision,
    ForeignRequest,
    Hold,
    KvBatch,
    KvCleared,
    Outcome,
    OverlapScore,
    PotentialLoad,
    Reject,
    Route,
    RouterContext,
    RouteRequest,
    WorkerView,
)
from dynamo_core.errors import Overloaded
from dynamo_core.kv import PromptHashes
from dynamo_kv_router.books import Books
from dynamo_kv_router.caches import Caches, Overlap
from dynamo_kv_router.choice import Chooser, explain
from dynamo_kv_router.config import KvRouterConfig
from dynamo_kv_router.cost import costs, preferred
from dynamo_kv_router.credit import Credit
from dynamo_kv_router.line import WaitingLine
from dynamo_kv_router.load import PlaceLoad
from dynamo_kv_router.outlook import outlook
from dynamo_kv_router.replica import note_of, take_foreign
from dynamo_kv_router.screen import HELD, Screen, takes_anyone
from dynamo_kv_router.terms import Terms, other_terms
from dynamo_kv_router.thresholds import BusyGate
from dynamo_kv_router.weights import Weights

__all__ = ["KvRouter"]

_log = logging.getLogger(__name__)

_DEFAULT_BLOCK = 16
"""Tokens a block for the router's own bookkeeping when the engine has no blocks."""


class _Choice(NamedTuple):
    place: PlaceLoad
    prompt: PromptHashes
    overlap: Overlap
    why: dict[str, Any]


class KvRouter:
    """Sends a request where its prefix is cached and the load allows. Implements :class:`~dynamo_core.contracts.Router`.

    A pure object: its only clock is the context's, it draws lots only above temperature 0, and it starts nothing.
    """

    output_tokens: Callable[[RouteRequest, int, int], None]
    """There only where outputs are counted, since it is called for every chunk."""

    def __init__(self, config: KvRouterConfig | None, context: RouterContext, *, weights: Weights | None = None) -> None:
        self.config = config = config or KvRouterConfig()
        self._model = context.model
        self._block_size = context.block_size or _DEFAULT_BLOCK
        self.weights = (weights or Weights()).configured(config, self._block_size)
        self._books = Books(config, self.weights, context.clock)
        self._caches = Caches(config, self._block_size)
        self._chooser = Chooser(context.seed)
        self._credit = Credit.of(config, self._block_size)
        self._gate = BusyGate(
            BusyThresholds(
                active_decode_blocks_threshold=config.active_decode_blocks_threshold,
                active_prefill_tokens_threshold=config.active_prefill_tokens_threshold,
                active_prefill_tokens_threshold_frac=config.active_prefill_tokens_threshold_frac,
            )
        )
        self._screen = Screen(config, self._gate)
        holds = config.router_queue_threshold is not None or config.router_when_busy == "hold"
        self._line = WaitingLine(config, self._uncached) if holds else None
        self._complete = config.router_min_initial_workers == 0
        if config.router_track_output_blocks:
            self.output_tokens = self._generated

    # --- the choice ----------------------------------------------------------------------------------------------------------

    def select(self, requests: Sequence[RouteRequest], workers: Mapping[int, WorkerView]) -> Sequence[Decision]:
        books = self._books
        if not workers.keys() <= books.workers:
            for worker in workers.values():
                self.worker_added(worker)
        if not self._complete:
            self._complete = len(books.workers) >= self.config.router_min_initial_workers
            if not self._complete:
                return [Hold(reason="the first workers are still to come")] * len(requests)
        books.tick()
        self._caches.expire(books.clock.now)
        if self._line is not None:
            return self._in_line(self._line, requests, workers)
        if len(requests) == 1:
            return [self._place(requests[0], workers)]
        # Longest first: the others find their place around them, and first tokens of a burst come sooner.
        order = sorted(range(len(requests)), key=lambda i: -len(requests[i].token_ids))
        decisions: dict[int, Decision] = {i: self._place(requests[i], workers) for i in order}
        return [decisions[i] for i in range(len(requests))]

    def _in_line(
        self, line: WaitingLine, requests: Sequence[RouteRequest], workers: Mapping[int, WorkerView]
    ) -> Sequence[Decision]:
        """Those first who go first, until nobody has room."""
        now = self._books.clock.now / 1000
        decisions: dict[int, Decision] = {}
        if not self._screen.closed(self._books.places):
            for i in line.order(requests, now):
                request = requests[i]
                decision = self._place(request, workers)
                if isinstance(decision, Hold):
                    if takes_anyone(request):
                        break
                    continue
                decisions[i] = decision
                line.leave(request)
                if isinstance(decision, Route):
                    line.charge(request)
        return [decisions[i] if i in decisions else self._wait(line, request, now) for i, request in enumerate(requests)]

    def _wait(self, line: WaitingLine, request: RouteRequest, now: float) -> Decision:
        if line.hold(request, now):
            return HELD
        patience = max(1.0, round(self._books.stay.value / 1000))
        return Reject(Overloaded("Every worker is busy and the queue is full; try again later.", retry_after=patience))

    def _place(self, request: RouteRequest, workers: Mapping[int, WorkerView]) -> Decision:
        choice = self._choose(request, workers)
        if not isinstance(choice, _Choice):
            return choice
        place, prompt, overlap, why = choice
        books, new, key = self._books, overlap.new_tokens[place.place], (request, place.id)
        own_ms, pieces = new * books.speed.token_ms, self._caches.pieces(prompt)
        books.begin(key, place, len(request.token_ids), new, own_ms, self._expected(request), pieces)
        books.newcomers.welcomed(place, overlap.new_tokens)
        self._caches.sent(key, place, prompt, books.clock.now)
        self._caches.found(prompt, overlap)
        rank = place.rank if place.several else None
        return Route(
            place.id,
            overlap.blocks[place.place],
            why,
            dp_rank=rank,
            note=note_of(prompt, assumed=not self._caches.listens(place)),
        )

    def _choose(self, request: RouteRequest, workers: Mapping[int, WorkerView]) -> _Choice | Hold | Reject:
        books, tokens = self._books, len(request.token_ids)
        candidates = books.places
        config, credit, rows = self.config, self._credit, books.rows
        if request.hints.settings:
            terms = other_terms(request.hints.settings, config, self.weights, books, self._block_size)
            if not isinstance(terms, Terms):
                return Reject(terms)
            config, credit, rows = terms
        fit = self._screen.fit(request, workers, candidates, all_offered=len(workers) == len(books.workers))
        if fit is not None:
            if not isinstance(fit, list):
                return fit
            candidates, rows = [candidates[i] for i in fit], [rows[i] for i in fit]
        elif not candidates:
            return Hold(reason="no worker is left for this request")
        prompt = self._caches.prompt(request)
        overlap = self._caches.overlap(prompt, tokens, books.places)
        priced: Sequence[float] = overlap.new_tokens
        if credit is not None:
            priced = credit.priced(overlap, tokens * books.speed.token_ms, books.places, books.clock.now)
        if books.newcomers:
            priced = books.newcomers.priced(priced, candidates, books.speed.token_ms, books.clock.now)
        price = costs(rows, priced, tokens, books.clock, books.speed, self._affinity(config), books.running_ms)
        if request.hints.preferred_taints:
            price = preferred(price, candidates, request.hints.preferred_taints)
        ranked = sorted(price)  # faster than looking for the least of so many more than once
        chosen = self._chooser.choose(price, ranked, candidates, config.router_temperature)
        place = candidates[chosen]
        if place.prefilling and self.weights.prefills and books.doubt(place):
            return self._choose(request, workers)  # once: then not all of them are so late
        return _Choice(place, prompt, overlap, explain(price, ranked, candidates, overlap.blocks, chosen))

    def _affinity(self, config: KvRouterConfig) -> float:
        """A cached prompt saves its time and, where room in the caches is scarce, what it would push out elsewhere."""
        weights = self.weights
        scarcity = min(1.0, self._caches.scarcity.share / weights.scarce)
        return config.overlap_score_weight * (1.0 + (weights.affinity - 1.0) * scarcity)

    def _expected(self, request: RouteRequest) -> int:
        """Tokens of the answer that are counted from the beginning."""
        if not self.config.router_track_output_blocks:
            return 0
        expected = request.hints.expected_output or round(self._books.answer.value)
        return min(expected, request.max_tokens) if request.max_tokens else expected

    def _uncached(self, request: RouteRequest) -> int:
        overlap = self._caches.overlap(self._caches.prompt(request), len(request.token_ids), self._books.places)
        return min(overlap.new_tokens, default=len(request.token_ids))

    # --- questions -----------------------------------------------------------------------------------------------------------

    def query(self, request: RouteRequest, workers: Mapping[int, WorkerView]) -> Decision:
        """As ``select`` would answer if nobody waited; books nothing."""
        self._look(workers)
        choice = self._choose(request, workers)
        if not isinstance(choice, _Choice):
            return choice
        place = choice.place
        rank = place.rank if place.several else None
        return Route(place.id, choice.overlap.blocks[place.place], choice.why, dp_rank=rank)

    def overlap_scores(self, request: RouteRequest, workers: Mapping[int, WorkerView]) -> dict[int, list[OverlapScore]]:
        self._look(workers)
        places = self._books.places
        tiers = self._caches.tiers(self._caches.prompt(request), places)
        scores: dict[int, list[OverlapScore]] = {worker: [] for worker in workers}
        for place, (device, host, disk) in zip(places, tiers, strict=True):
            if place.id in scores:
                scores[place.id].append(OverlapScore(dp_rank=place.rank, device=device, host=host, disk=disk))
        return scores

    def potential_loads(self, request: RouteRequest, workers: Mapping[int, WorkerView]) -> dict[int, list[PotentialLoad]]:
        self._look(workers)
        return outlook(self._books, self._caches, request, workers, self._block_size)

    def known_blocks(self) -> list[KvBatch]:
        known = ((place, self._caches.known(place)) for place in self._books.places)
        return [KvBatch(place.id, 0, events, place.rank) for place, events in known if events]

    def _look(self, workers: Mapping[int, WorkerView]) -> None:
        """At the workers, the clock and what it ends."""
        for worker in workers.keys() - self._books.workers:
            self.worker_added(workers[worker])
        self._books.tick()
        self._caches.expire(self._books.clock.now)

    # --- what other frontends route ------------------------------------------------------------------------------------------

    def routed_elsewhere(self, request: ForeignRequest, worker_id: int) -> None:
        take_foreign(self._books, self._caches, request, worker_id, self._block_size)

    # --- what becomes of it --------------------------------------------------------------------------------------------------

    def first_token(self, request: RouteRequest, worker_id: int) -> None:
        key = (request, worker_id)
        self._books.first_token(key)
        self._caches.computed(key, self._books.clock.now)

    def _generated(self, request: RouteRequest, worker_id: int, count: int) -> None:
        self._books.generated((request, worker_id), count)

    def finished(self, request: RouteRequest, worker_id: int, outcome: Outcome) -> None:
        key = (request, worker_id)
        if outcome != "completed":
            self._caches.forget(key)
        else:
            self._caches.computed(key, self._books.clock.now)
        self._books.end(key, answered=outcome == "completed" and not isinstance(request, ForeignRequest))

    def dropped(self, request: RouteRequest) -> None:
        """A request that was held is not wanted any more."""
        if self._line is not None:
            self._line.leave(request)

    def busy_thresholds(self) -> BusyThresholds:
        return self._gate.thresholds

    def set_busy_thresholds(self, thresholds: BusyThresholds) -> None:
        self._gate.thresholds = thresholds

    # --- workers and their caches --------------------------------------------------------------------------------------------

    def worker_added(self, worker: WorkerView) -> None:
        if self._books.of(worker.id):
            return
        size = worker.card.block_size or self._block_size
        if size != self._block_size:
            _log.warning(
                "worker %x has KV blocks of %d tokens and others of model %s have %d: what it has cached cannot be found;"
                " give all workers one block size",
                worker.id, size, self._model, self._block_size,
            )  # fmt: skip
        self._caches.add(worker, self._books.add(worker))

    def worker_removed(self, worker_id: int) -> None:
        self._caches.remove(self._books.of(worker_id))
        self._books.remove(worker_id)

    def kv_events(self, batch: KvBatch) -> None:
        places = self._books.of(batch.worker_id)
        if batch.dp_rank < len(places):
            place, newcomers = places[batch.dp_rank], self._books.newcomers
            if newcomers and len(batch.events) > 1 and isinstance(batch.events[0], KvCleared) and not self._caches.size(place):
                newcomers.left((place,))  # a state, the first: it had a cache when it came, so it was only out of sight
            self._caches.take(batch, place)

    def kv_lost(self, worker_id: int, dp_rank: int) -> None:
        places = self._books.of(worker_id)
        if dp_rank < len(places):
            self._caches.lost(places[dp_rank])

    def state(self) -> dict[str, Any]:
        """What the router believes now. O(places)."""
        books = self._books
        books.tick()
        now = books.clock.now
        state = {
            "prefill": {"overhead_ms": round(books.speed.overhead_ms, 3), "token_ms": round(books.speed.token_ms, 6)},
            "decode": {"running_token_ms": round(books.slowed_ms, 6)},
            "blocks": len(self._caches),
            "scarcity": round(self._caches.scarcity.share, 3),
            "requests": len(books),
            "workers": {place.name: self._account(place, now) for place in books.places},
        }
        if self._line is not None:
            state["waiting"] = len(self._line)
        return state

    def _account(self, place: PlaceLoad, now: float) -> dict[str, Any]:
        return {
            "requests": place.requests,
            "prefilling": place.prefilling,
            "prompt_tokens": place.tokens,
            "wait_ms": round(place.wait_ms(now), 3),
            "blocks": self._caches.size(place),
            "kv_events": self._caches.listens(place),
        }
