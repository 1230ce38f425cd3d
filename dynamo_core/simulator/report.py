"""What a run comes to, in the figures of Dynamo's replay report."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, pstdev

import msgspec

from dynamo_core.simulator.cluster import Change, Cluster
from dynamo_core.simulator.simulation import RequestLog, Simulated

__all__ = ["Balance", "Distribution", "Goodput", "Report", "Sla", "report"]


class Distribution(msgspec.Struct, frozen=True):
    """All 0 when there is nothing to count. Percentiles are values that occurred, next to the place asked, as Dynamo's are."""

    mean: float = 0.0
    p50: float = 0.0
    p90: float = 0.0
    p99: float = 0.0

    @classmethod
    def of(cls, values: Sequence[float]) -> Distribution:
        if not values:
            return cls()
        ordered = sorted(values)
        return cls(fmean(ordered), *(_percentile(ordered, share) for share in (0.5, 0.9, 0.99)))


class Sla(msgspec.Struct, frozen=True, kw_only=True):
    """``None``: no bound."""

    ttft_ms: float | None = None
    itl_ms: float | None = None
    """Of the request's mean time between tokens."""


class Goodput(msgspec.Struct, frozen=True, kw_only=True):
    """Completed requests that kept the agreement."""

    sla_ttft_ms: float | None
    sla_itl_ms: float | None
    requests: int
    share: float
    """Of all requests."""
    requests_per_s: float


class Balance(msgspec.Struct, frozen=True, kw_only=True):
    """How evenly the work was spread; by worker, in the order of their ids."""

    requests: tuple[int, ...]
    computed_tokens: tuple[int, ...]
    """Prompt tokens that were not in the cache."""
    busy: tuple[float, ...]
    """Share of the run's time in which the worker had work."""
    busiest: float
    """Computed prompt tokens of the busiest worker ÷ the mean; 1 is even."""
    deviation: float
    """Standard deviation of the computed prompt tokens ÷ their mean."""


class Report(msgspec.Struct, frozen=True, kw_only=True):
    router: str
    speedup: float
    workers: int
    """At the start."""
    requests: int
    completed: int
    failed: int
    hit_rate: float
    """Prompt tokens found in a cache ÷ prompt tokens, of the completed requests."""
    ttft_ms: Distribution
    tpot_ms: Distribution
    """(end − first token) ÷ (output tokens − 1), of requests with two output tokens at least."""
    e2e_ms: Distribution
    queue_ms: Distribution
    """Held by the router."""
    balance: Balance
    goodput: Goodput | None
    blocks: int
    block_size: int
    spread_ms: float
    kv_event_delay_ms: float
    changes: tuple[Change, ...]
    """Workers that joined and left."""
    duration_s: float
    """Of virtual time."""
    preemptions: int
    select_us: float
    """Real time that the router took a request."""
    wall_s: float
    faults: tuple[str, ...]
    """What the router did wrong."""


def report(
    simulated: Simulated, cluster: Cluster, *, router: str, speedup: float, spread_ms: float = 0.0, sla: Sla | None = None
) -> Report:
    done = [log for log in simulated.requests if log.end_ms >= 0]
    prompt = sum(log.prompt_tokens for log in done)
    return Report(
        router=router,
        speedup=speedup,
        workers=cluster.workers,
        requests=len(simulated.requests),
        completed=len(done),
        failed=len(simulated.requests) - len(done),
        hit_rate=sum(log.reused_tokens for log in done) / prompt if prompt else 0.0,
        ttft_ms=Distribution.of([log.first_ms - log.at_ms for log in done]),
        tpot_ms=Distribution.of([_tpot(log) for log in done if log.output_tokens > 1]),
        e2e_ms=Distribution.of([log.end_ms - log.at_ms for log in done]),
        queue_ms=Distribution.of([log.routed_ms - log.at_ms for log in done]),
        balance=_balance(simulated),
        goodput=None if sla is None else _goodput(simulated, done, sla),
        blocks=cluster.blocks,
        block_size=cluster.block_size,
        spread_ms=spread_ms,
        kv_event_delay_ms=cluster.kv_event_delay_ms,
        changes=cluster.changes,
        duration_s=simulated.end_ms / 1000,
        preemptions=sum(worker.preemptions for worker in simulated.workers),
        select_us=simulated.select_s / len(simulated.requests) * 1e6,
        wall_s=simulated.wall_s,
        faults=tuple(f"{fault.what} ({fault.times} times)" for fault in simulated.faults),
    )


def _percentile(ordered: Sequence[float], share: float) -> float:
    return ordered[math.floor((len(ordered) - 1) * share + 0.5)]


def _tpot(log: RequestLog) -> float:
    return (log.end_ms - log.first_ms) / (log.output_tokens - 1)


def _goodput(simulated: Simulated, done: Sequence[RequestLog], sla: Sla) -> Goodput:
    ttft, itl = sla.ttft_ms, sla.itl_ms
    good = sum(
        (ttft is None or log.first_ms - log.at_ms <= ttft) and (itl is None or log.output_tokens < 2 or _tpot(log) <= itl)
        for log in done
    )
    return Goodput(
        sla_ttft_ms=ttft,
        sla_itl_ms=itl,
        requests=good,
        share=good / len(simulated.requests),
        requests_per_s=good / simulated.end_ms * 1000 if simulated.end_ms else 0.0,
    )


def _balance(simulated: Simulated) -> Balance:
    workers = simulated.workers
    counts = dict.fromkeys((worker.id for worker in workers), 0)
    for log in simulated.requests:
        if log.end_ms >= 0:
            counts[log.worker_id] += 1
    computed = tuple(worker.computed_tokens for worker in workers)
    mean = fmean(computed)
    return Balance(
        requests=tuple(counts.values()),
        computed_tokens=computed,
        busy=tuple(worker.busy_ms / simulated.end_ms if simulated.end_ms else 0.0 for worker in workers),
        busiest=max(computed) / mean if mean else 1.0,
        deviation=pstdev(computed) / mean if mean else 0.0,
    )
