"""Discrete events: arrivals, ends of engine steps, KV events on their way, and holds that run out.

A router sees here what it sees behind a frontend. Requests of one instant reach it in one call; what it holds is offered again
when a request finishes or gets its first token, and after ``retry_after``. It hears of blocks through encoded batches only, and
of load through its own choices, first tokens and ends; ``WorkerView.load`` stays empty.

Within one instant the order is that of a worker and a frontend on one machine: who joins and leaves, what workers emit, then what
their caches say, then the router's choices; a worker whose step ended at that instant begins the next one with what just came. A
worker that leaves is gone for the router at once, and finishes what it runs.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from itertools import count
from time import perf_counter
from typing import Any, NamedTuple, TypeAlias

import msgspec

from dynamo_core.contracts import Hold, Reject, Route, Router, RouterContext, RouteRequest, WorkerView
from dynamo_core.kv.codec import decode_kv_batch
from dynamo_core.kv.scheduler import Step
from dynamo_core.simulator.cluster import Change, Cluster, Job, SimulatedWorker
from dynamo_core.simulator.trace import Trace, TraceRequest

__all__ = ["Fault", "MakeRouter", "Progress", "RequestLog", "Simulated", "Simulation", "WorkerLog"]

MakeRouter: TypeAlias = Callable[[RouterContext], Router]
Progress: TypeAlias = Callable[[int], None]
"""Called with the number of requests that are over, after every hundred or so."""

_REPORT_EVERY = 64
_LEAST_RETRY_MS = 0.001
"""A hold for no time at all would never let time pass."""
_OPTIONAL = ("first_token", "output_tokens", "finished", "kv_events", "worker_added", "worker_removed")


class RequestLog(msgspec.Struct, kw_only=True):
    """What happened to one request. Times in milliseconds of virtual time since the start; -1 where it never came so far."""

    at_ms: float
    prompt_tokens: int
    output_tokens: int
    worker_id: int = -1
    overlap_blocks: int = 0
    """What the router believed."""
    reused_tokens: int = 0
    """What the worker found."""
    routed_ms: float = -1
    first_ms: float = -1
    end_ms: float = -1
    error: str = ""


class WorkerLog(msgspec.Struct, frozen=True, kw_only=True):
    id: int
    busy_ms: float
    computed_tokens: int
    preemptions: int


class Fault(msgspec.Struct, frozen=True):
    """What a router did wrong, and how often; the requests concerned failed."""

    what: str
    times: int


class Simulated(msgspec.Struct, frozen=True, kw_only=True):
    """In order of arrival."""

    requests: tuple[RequestLog, ...]
    workers: tuple[WorkerLog, ...]
    end_ms: float
    select_s: float
    """Real time spent in the router's ``select``."""
    wall_s: float
    """Real time of the whole run."""
    faults: tuple[Fault, ...] = ()


class KvPayload(NamedTuple):
    worker_id: int
    content: bytes


class Simulation:
    """One trace, one cluster, one router; to be run once."""

    def __init__(
        self,
        trace: Trace,
        cluster: Cluster,
        make_router: MakeRouter,
        *,
        speedup: float = 1.0,
        spread_ms: float = 0.0,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> None:
        self._trace = trace
        self._cluster = cluster
        self._arrivals = trace.arrivals_ms(speedup, spread_ms, seed)
        self._progress = progress
        self._now = 0.0
        context = RouterContext(model="simulated", block_size=cluster.block_size, clock=lambda: self._now / 1000, seed=seed)
        self._router = router = make_router(context)
        self._tell: dict[str, Callable[..., object] | None] = {name: getattr(router, name, None) for name in _OPTIONAL}
        self._workers: dict[int, SimulatedWorker] = {}
        """All that ever were; who is there now is in the views."""
        self._views: dict[int, WorkerView] = {}
        self._logs = [
            RequestLog(at_ms=at, prompt_tokens=r.input_length, output_tokens=r.output_length) for at, r in self._arrivals
        ]
        self._waiting: list[tuple[int, RouteRequest]] = []
        self._offer = False
        self._retry_ms: float | None = None
        self._order = count()
        self._events: list[tuple[float, int, SimulatedWorker | KvPayload | Change | None]] = [
            (change.at_ms, next(self._order), change) for change in cluster.changes
        ]
        """(time, order, whose step ends | what arrives | who comes and goes | ``None``: a hold runs out)"""
        heapq.heapify(self._events)
        self._ready: dict[SimulatedWorker, None] = {}
        """Workers that begin their next step at the end of this instant."""
        self._faults: dict[str, int] = {}
        self._over = 0
        self._select_s = 0.0

    def run(self) -> Simulated:
        """Until every request is over; blocks."""
        began = perf_counter()
        self._join(self._cluster.workers)
        position, arrivals, events = 0, self._arrivals, self._events
        while position < len(arrivals) or events or self._waiting:
            if position < len(arrivals) and not (events and events[0][0] < arrivals[position][0]):
                self._now = arrivals[position][0]
            elif events:
                if self._over == len(self._logs) and isinstance(events[0][2], Change):
                    heapq.heappop(events)  # nobody is left to see it
                    continue
                self._now = events[0][0]
            else:
                self._give_up()
                break
            while events and events[0][0] <= self._now:
                self._happen(heapq.heappop(events))
            while position < len(arrivals) and arrivals[position][0] <= self._now:
                self._arrive(position, arrivals[position][1])
                position += 1
            while self._offer:
                self._turn()
            for worker in self._ready:
                self._begin(worker)
            self._ready.clear()
        return Simulated(
            requests=tuple(self._logs),
            workers=tuple(
                WorkerLog(id=i, busy_ms=w.busy_ms, computed_tokens=w.computed_tokens, preemptions=w.preemptions)
                for i, w in self._workers.items()
            ),
            end_ms=self._now,
            select_s=self._select_s,
            wall_s=perf_counter() - began,
            faults=tuple(Fault(what, times) for what, times in self._faults.items()),
        )

    # --- what happens --------------------------------------------------------------------------------------------------------

    def _happen(self, event: tuple[float, int, SimulatedWorker | KvPayload | Change | None]) -> None:
        at, _, what = event
        if isinstance(what, SimulatedWorker):
            if what.due_ms == at:  # else its run was cut short meanwhile
                self._end_step(what)
        elif isinstance(what, KvPayload):
            self._hear(what)
        elif isinstance(what, Change):
            self._change(what.workers)
        elif self._retry_ms == at:
            self._retry_ms = None
            self._offer = bool(self._waiting)

    def _change(self, workers: int) -> None:
        if workers > 0:
            self._join(workers)
        for worker_id in list(self._views)[: max(0, -workers)]:
            del self._views[worker_id]
            self._call("worker_removed", worker_id)
        self._offer = bool(self._waiting)

    def _join(self, count: int) -> None:
        every_step = self._tell["output_tokens"] is not None
        for worker_id in range(len(self._workers) + 1, len(self._workers) + count + 1):
            worker = self._workers[worker_id] = SimulatedWorker(worker_id, self._cluster, every_step=every_step)
            self._views[worker_id] = worker.view
            self._call("worker_added", worker.view)

    def _hear(self, payload: KvPayload) -> None:
        """What a worker published that is still there."""
        if payload.worker_id in self._views:
            self._call("kv_events", decode_kv_batch(payload.content))

    def _arrive(self, index: int, request: TraceRequest) -> None:
        token_ids = self._trace.token_ids(request)
        self._waiting.append((index, RouteRequest(id=str(index), token_ids=token_ids, arrival=self._now / 1000)))
        self._offer = True

    def _begin(self, worker: SimulatedWorker) -> None:
        worker.begin(self._now)
        self._expect(worker)

    def _expect(self, worker: SimulatedWorker) -> None:
        if worker.due_ms is not None:
            heapq.heappush(self._events, (worker.due_ms, next(self._order), worker))

    def _end_step(self, worker: SimulatedWorker) -> None:
        step = worker.end(self._now)
        self._ready[worker] = None
        if step is None:
            return
        self._emit(worker, step)
        payload = worker.complete(step)
        if payload is None or self._tell["kv_events"] is None:
            return
        told = KvPayload(worker.view.id, payload)
        delay = self._cluster.kv_event_delay_ms
        if delay:
            heapq.heappush(self._events, (self._now + delay, next(self._order), told))
        else:
            self._hear(told)

    def _emit(self, worker: SimulatedWorker, step: Step) -> None:
        if self._tell["output_tokens"] is not None:
            for job in worker.scheduler.decoding:
                self._call("output_tokens", job.route, worker.view.id, 1)  # type: ignore[attr-defined]  # only jobs are added
        for job in step.ending:
            self._token(worker, job, last=True)  # type: ignore[arg-type]
        for job in step.prefilled:
            self._token(worker, job, last=job.generated + 1 >= job.max_tokens)  # type: ignore[arg-type]

    def _token(self, worker: SimulatedWorker, job: Job, *, last: bool) -> None:
        """A token of which more is to be said than that it came."""
        log = self._logs[job.index]
        if log.first_ms < 0:
            log.first_ms = self._now
            log.reused_tokens = job.cached
            self._call("first_token", job.route, worker.view.id)
            self._offer = bool(self._waiting)
        self._call("output_tokens", job.route, worker.view.id, 1)
        if last:
            log.end_ms = self._now
            view = worker.view
            view.inflight -= 1
            view.inflight_tokens -= job.prompt_tokens
            self._call("finished", job.route, view.id, "completed")
            self._finished()

    def _finished(self) -> None:
        self._offer = bool(self._waiting)
        self._over += 1
        if self._progress is not None and self._over % _REPORT_EVERY == 0:
            self._progress(self._over)

    # --- routing -------------------------------------------------------------------------------------------------------------

    def _turn(self) -> None:
        """Offer all that waits to the router, as a frontend does at the end of a turn of its loop."""
        self._offer = False
        waiting, self._waiting = self._waiting, []
        retry: list[float] = []
        for (index, request), decision in zip(waiting, self._select(waiting), strict=False):
            if isinstance(decision, Route):
                self._place(index, request, decision)
            elif isinstance(decision, Hold):
                self._waiting.append((index, request))
                if decision.retry_after is not None:
                    retry.append(decision.retry_after)
            elif isinstance(decision, Reject):
                self._logs[index].error = f"the router rejected it: {decision.error}"
                self._finished()
            else:
                self._fail(index, f"answered {decision!r}, which is no Route, Hold or Reject")
        self._retry_ms = self._now + max(_LEAST_RETRY_MS, min(retry) * 1000) if retry else None
        if self._retry_ms is not None:
            heapq.heappush(self._events, (self._retry_ms, next(self._order), None))

    def _select(self, waiting: Sequence[tuple[int, RouteRequest]]) -> Sequence[object]:
        """The router's decisions; none when it failed, and these requests with it."""
        began = perf_counter()
        try:
            decisions = self._router.select([request for _, request in waiting], self._views)
            self._select_s += perf_counter() - began
            if len(decisions) == len(waiting):
                return decisions
            what = f"made {len(decisions)} decisions for {len(waiting)} requests"
        except Exception as error:  # noqa: BLE001  # a plugin's mistake costs these requests, as in a frontend
            what = f"raised {error!r} in select"
        for index, _ in waiting:
            self._fail(index, what)
        return ()

    def _place(self, index: int, request: RouteRequest, route: Route) -> None:
        worker = self._workers.get(route.worker_id)
        if worker is None or route.worker_id not in self._views:
            self._call("finished", request, route.worker_id, "failed")
            self._fail(index, f"chose worker {route.worker_id!r}, which does not exist")
            return
        prompt = len(request.token_ids)
        room = self._cluster.capacity - prompt
        log = self._logs[index]
        log.worker_id, log.overlap_blocks, log.routed_ms = route.worker_id, route.overlap_blocks, self._now
        if room < 1:
            log.error = f"its prompt of {prompt} tokens does not fit into {self._cluster.capacity}"
            self._call("finished", request, route.worker_id, "failed")
            self._finished()
            return
        log.output_tokens = min(log.output_tokens, room)
        worker.view.inflight += 1
        worker.view.inflight_tokens += prompt
        running_until = worker.due_ms
        worker.add(Job(index, request, log.output_tokens, self._cluster.block_size), self._now)
        if running_until is None:
            self._ready[worker] = None
        elif worker.due_ms != running_until:
            self._expect(worker)

    def _fail(self, index: int, what: str) -> None:
        self._logs[index].error = f"the router {what}"
        self._faults[what] = self._faults.get(what, 0) + 1
        self._finished()

    def _give_up(self) -> None:
        """Nothing runs and nothing will happen: what the router still holds, it holds for ever."""
        for index, _ in self._waiting:
            self._fail(index, "holds requests although nothing runs")
        self._waiting = []

    def _call(self, method: str, *args: Any) -> None:
        """An optional method, if the router has it."""
        call = self._tell[method]
        if call is not None:
            try:
                call(*args)
            except Exception as error:  # noqa: BLE001  # as in select
                what = f"raised {error!r} in {method}"
                self._faults[what] = self._faults.get(what, 0) + 1
