"""From a request to a worker and, when that worker dies, to the next one.

A *sequence* is one engine request on its way; a *leg* is its stay on one worker. Each :class:`~dynamo_core.contracts.Route`
opens a leg, and each leg is told to the router as ``finished`` exactly once, whatever ends it. Everything happens on the event
loop; nothing here awaits.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections.abc import Mapping
from collections.abc import Sequence as Seq
from math import ceil

import msgspec

from dynamo_core.contracts import (
    Context,
    EngineRequest,
    Hold,
    Outcome,
    Reject,
    Route,
    RouteRequest,
    WorkerView,
)
from dynamo_core.errors import Cancelled, Disconnected, EngineError, NoInstances, Overloaded
from dynamo_core.serving.circuit_breaker import CircuitBreaker
from dynamo_core.serving.router_guard import RouterGuard
from dynamo_core.serving.sequence import Leg, Sequence, SequenceReceiver, WorkerClient
from dynamo_core.serving.sharing import ModelSharing

__all__ = ["HIT_RATE_STEPS", "DispatchCounters", "Dispatcher"]

_log = logging.getLogger(__name__)

HIT_RATE_STEPS = 20
_ROUTER_FAILED = "The router failed on this request."


class DispatchCounters(msgspec.Struct):
    """Running totals of one model, read by the metrics."""

    routed: int = 0
    migrated: int = 0
    """Legs that were continued on another worker."""
    stranded: int = 0
    """Requests that failed because no worker could continue them."""
    too_long: int = 0
    """Those of them that were longer than a migration may be."""
    hit_rates: list[int] = msgspec.field(default_factory=lambda: [0] * (HIT_RATE_STEPS + 1))
    """Routed requests by the share of their prompt that the router believed cached, in HIT_RATE_STEPS steps, rounded up."""
    hit_rate_sum: float = 0.0

    def hit(self, rate: float) -> None:
        rate = min(1.0, max(0.0, rate))
        self.hit_rates[ceil(rate * HIT_RATE_STEPS)] += 1
        self.hit_rate_sum += rate


class Dispatcher:
    """Places the sequences of one model. The requests of one turn of the loop reach the router together."""

    def __init__(
        self,
        model: str,
        router: RouterGuard,
        *,
        migration_limit: int = 3,
        migration_max_seq_len: int = 0,
        max_waiting: int = 8192,
        breaker_failures: int = 0,
        breaker_seconds: float = 5.0,
        sharing: ModelSharing | None = None,
    ) -> None:
        self.model = model
        self.router = router
        self.sharing = sharing or ModelSharing(model)
        self.migration_limit = migration_limit
        self.migration_max_seq_len = migration_max_seq_len
        """Tokens of prompt and output above which a request stays where it is; 0: no limit."""
        self.counters = DispatchCounters()
        self.workers: dict[int, WorkerView] = {}
        self._clients: dict[int, WorkerClient] = {}
        self.breaker = CircuitBreaker(breaker_failures, breaker_seconds, self.changed)
        """Tells of each leg's beginning and end which workers to leave out."""
        self.sharing.attach(router, self.workers, self.changed)
        self._max_waiting = max_waiting
        self._loop = asyncio.get_running_loop()
        self._context = contextvars.copy_context()
        """A turn serves many requests: its log lines and the connections it opens belong to none of them."""
        self._waiting: list[Sequence] = []
        self._scheduled = False
        self._stale = False
        self._timer: asyncio.TimerHandle | None = None

    # --- workers -------------------------------------------------------------------------------------------------------------

    def add_worker(self, worker: WorkerView, client: WorkerClient) -> None:
        self.workers[worker.id] = worker
        self._clients[worker.id] = client
        self.router.tell("worker_added", worker)
        self.sharing.worker_added(worker)
        self.changed()

    def remove_worker(self, worker_id: int) -> None:
        """No new work for it; its running legs end when the request plane says so."""
        if self.workers.pop(worker_id, None) is not None:
            del self._clients[worker_id]
            self.breaker.forget(worker_id)
            self.sharing.worker_removed(worker_id)
            self.router.tell("worker_removed", worker_id)
            self.changed()

    def changed(self) -> None:
        """A worker, a load or a running request changed: offer what waits again."""
        self._stale = True
        if self._waiting:
            self._schedule()

    @property
    def waiting(self) -> int:
        """Requests that are on no worker."""
        return len(self._waiting)

    # --- requests ------------------------------------------------------------------------------------------------------------

    def submit(self, route: RouteRequest, request: EngineRequest, context: Context, receiver: SequenceReceiver) -> Sequence:
        """Place it at the end of this turn. Errors reach ``receiver.on_error``, never before this call returns."""
        sequence = Sequence(self, route, request, context, receiver)
        self.enqueue(sequence)
        return sequence

    async def query(self, request: RouteRequest) -> Route:
        """Where the request would go at this moment. Books nothing.

        Raises what it would fail with, :class:`Overloaded` if it would have to wait.
        """
        workers: Mapping[int, WorkerView] = {i: w for i, w in self.workers.items() if i not in request.excluded}
        if request.pinned is None:
            workers = self.breaker.offered(workers)
            self.sharing.pin(request, workers)
        if not workers or (request.pinned is not None and request.pinned not in workers):
            who = "No worker serves" if request.pinned is None else f"Worker {request.pinned} does not serve"
            raise NoInstances(f"{who} the model {self.model!r}; try again in a moment.", retry_after=1)
        decision = await self.router.query(request, workers)
        if isinstance(decision, Route) and decision.worker_id in workers:
            return decision
        if isinstance(decision, Reject):
            raise decision.error
        if isinstance(decision, Hold):
            raise Overloaded(f"The request would have to wait: {decision.reason or 'every worker is busy'}.", retry_after=1)
        if decision is not None:
            self.router.fault(f"answered {decision!r} to a question")
        raise EngineError(_ROUTER_FAILED, code="router_error")

    def enqueue(self, sequence: Sequence) -> None:
        self._waiting.append(sequence)
        self._schedule()

    def release(self, leg: Leg, outcome: Outcome) -> None:
        """A leg is over: told to the router once, and what waits is offered again."""
        if leg.released:
            return
        leg.over()
        worker = leg.worker
        worker.inflight -= 1
        worker.inflight_tokens -= len(leg.route.token_ids)
        self.router.tell("finished", leg.route, worker.id, outcome)
        self.sharing.ended(leg.number)
        self.breaker.ended(worker.id)
        self.changed()

    def close(self) -> None:
        """Fail what waits and stop the clock."""
        self.breaker.close()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        waiting, self._waiting = self._waiting, []
        for sequence in waiting:
            sequence.fail(NoInstances("The server is shutting down; try again.", retry_after=1))

    # --- one turn ------------------------------------------------------------------------------------------------------------

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._turn, context=self._context)

    def _turn(self) -> None:
        self._scheduled = self._stale = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        waiting, self._waiting = self._waiting, []
        held: list[Sequence] = []
        retry: list[float] = []
        for batch, workers in self._batches(waiting):
            for sequence, decision in zip(batch, self._select(batch, workers), strict=False):
                if isinstance(decision, Route):
                    self._place(sequence, decision, workers)
                elif isinstance(decision, Hold):
                    self._hold(sequence, decision, held, retry)
                elif isinstance(decision, Reject):
                    sequence.fail(decision.error)
                else:
                    self._misrouted(sequence, f"answered {decision!r}, which is no Route, Hold or Reject")
        self._waiting = held + self._waiting
        if held and self._stale:  # a leg ended while this turn placed others
            self._schedule()
        elif retry:
            self._timer = self._loop.call_later(min(retry), self.changed, context=self._context)

    def _batches(self, waiting: list[Sequence]) -> list[tuple[list[Sequence], Mapping[int, WorkerView]]]:
        """Requests that may go to the same workers, together: nearly always one batch. What can go nowhere fails here."""
        batches: dict[tuple[frozenset[int], bool], list[Sequence]] = {}
        sharing = self.sharing if self.sharing.sessions is not None else None
        for sequence in waiting:
            if sequence.closed:
                continue
            if sequence.context.is_stopped():
                sequence.fail(Cancelled("The request was cancelled before it reached a worker."))
                continue
            if sharing is not None and not sequence.named:
                sharing.pin(sequence.route, self.breaker.offered(self.workers))
            batches.setdefault((sequence.route.excluded, sequence.route.pinned is None), []).append(sequence)
        placeable: list[tuple[list[Sequence], Mapping[int, WorkerView]]] = []
        for (excluded, free), batch in batches.items():
            workers: Mapping[int, WorkerView] = self.workers
            if excluded:
                workers = {i: w for i, w in workers.items() if i not in excluded}
            if free:  # who names a worker wants that one, whatever it did to others
                workers = self.breaker.offered(workers)
            if workers:
                placeable.append(([s for s in batch if self._pin_holds(s, workers)], workers))
            else:
                for sequence in batch:
                    self._strand(sequence)
        return [(batch, workers) for batch, workers in placeable if batch]

    def _pin_holds(self, sequence: Sequence, workers: Mapping[int, WorkerView]) -> bool:
        pinned = sequence.route.pinned
        if pinned is None or pinned in workers:
            return True
        sequence.fail(sequence.setback or NoInstances(f"Worker {pinned} does not serve the model {self.model!r}."))
        return False

    def _strand(self, sequence: Sequence) -> None:
        if sequence.setback is not None:
            self.counters.stranded += 1
        sequence.fail(
            sequence.setback or NoInstances(f"No worker serves the model {self.model!r}; try again in a moment.", retry_after=1)
        )

    def _select(self, batch: list[Sequence], workers: Mapping[int, WorkerView]) -> Seq[object]:
        """The router's decisions; none when it failed, and these requests with it."""
        decisions = self.router.select([sequence.route for sequence in batch], workers)
        if decisions is None:
            for sequence in batch:
                sequence.fail(EngineError(_ROUTER_FAILED, code="router_error"))
        return decisions or ()

    def _place(self, sequence: Sequence, route: Route, workers: Mapping[int, WorkerView]) -> None:
        worker = workers.get(route.worker_id)
        if worker is None or sequence.closed:
            # The router counts it as running from its answer on, so it must hear that it is not.
            self.router.tell("finished", sequence.route, route.worker_id, "cancelled" if worker is not None else "failed")
            if worker is None:
                self._misrouted(sequence, f"chose worker {route.worker_id!r}, which is not among those it was offered")
            return
        if route.dp_rank is not None and not self._on_rank(sequence, route.dp_rank, worker):
            return
        client = self._clients.get(worker.id)
        worker.inflight += 1
        worker.inflight_tokens += len(sequence.route.token_ids)
        sequence.placed = route
        if _log.isEnabledFor(logging.DEBUG):
            _log.debug("request %s goes to worker %x: %s", sequence.request.id, worker.id, route.explain)
        leg = Leg(sequence, worker)
        leg.number = self.sharing.begun(worker.id, sequence.route, route)
        self.counters.routed += 1
        self.breaker.placed(worker.id)
        blocks = len(sequence.route.token_ids) // worker.card.block_size if worker.card.block_size else 0
        self.counters.hit(route.overlap_blocks / blocks if blocks else 0.0)
        if client is None:
            sequence.leg = leg
            sequence.leg_ended(leg, Disconnected("The worker left."))
        else:
            sequence.begin(leg, client)

    def _on_rank(self, sequence: Sequence, rank: int, worker: WorkerView) -> bool:
        """Tell the engine which of its ranks was chosen; false for one that the worker does not have."""
        if not 0 <= rank < max(1, worker.card.data_parallel_size):
            self.router.tell("finished", sequence.route, worker.id, "failed")
            self._misrouted(sequence, f"chose rank {rank!r} of worker {worker.id}, which has {worker.card.data_parallel_size}")
            return False
        sequence.request = msgspec.structs.replace(sequence.request, dp_rank=rank)
        return True

    def _hold(self, sequence: Sequence, hold: Hold, held: list[Sequence], retry: list[float]) -> None:
        if len(held) >= self._max_waiting:
            sequence.fail(
                Overloaded("Every worker is busy and the queue is full; try again later.", retry_after=hold.retry_after or 1)
            )
            return
        held.append(sequence)
        if hold.retry_after is not None:
            retry.append(hold.retry_after)

    def _misrouted(self, sequence: Sequence, what: str) -> None:
        self.router.fault(f"{what} (request {sequence.request.id})")
        sequence.fail(EngineError(_ROUTER_FAILED, code="router_error"))
