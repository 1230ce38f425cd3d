from __future__ import annotations

from typing import Any

import pytest

from dynamo_core.simulator import Cluster, Distribution, RequestLog, Simulated, Sla, WorkerLog, report

CLUSTER = Cluster(workers=2)


def simulated(*requests: RequestLog) -> Simulated:
    workers = (
        WorkerLog(id=1, busy_ms=500, computed_tokens=300, preemptions=1),
        WorkerLog(id=2, busy_ms=250, computed_tokens=100, preemptions=0),
    )
    return Simulated(requests=requests, workers=workers, end_ms=1000, select_s=0.001, wall_s=0.1)


def log(**fields: Any) -> RequestLog:
    return RequestLog(**{"at_ms": 0, "prompt_tokens": 100, "output_tokens": 11, "worker_id": 1, "routed_ms": 0, **fields})


def test_percentiles_are_values_that_occurred() -> None:
    assert Distribution.of([]) == Distribution()
    assert Distribution.of(list(range(101))) == Distribution(50, 50, 90, 99)
    assert Distribution.of([3, 1]) == Distribution(2, 3, 3, 3)


def test_figures_count_what_completed() -> None:
    made = report(
        simulated(
            log(first_ms=100, end_ms=300, reused_tokens=50),
            log(first_ms=300, end_ms=300, output_tokens=1, worker_id=2, routed_ms=40),
            log(error="the router raised"),
        ),
        CLUSTER,
        router="r",
        speedup=2,
        sla=Sla(ttft_ms=200, itl_ms=20),
    )
    assert (made.requests, made.completed, made.failed, made.hit_rate) == (3, 2, 1, 0.25)
    assert (made.ttft_ms.mean, made.tpot_ms.mean, made.e2e_ms.mean, made.queue_ms.p99) == (200, 20, 300, 40)
    assert made.balance.requests == (1, 1)
    assert (made.balance.busy, made.balance.busiest, made.balance.deviation) == ((0.5, 0.25), 1.5, 0.5)
    assert made.goodput is not None
    assert (made.goodput.requests, made.goodput.share, made.goodput.requests_per_s) == (1, pytest.approx(1 / 3), 1)
    assert (made.preemptions, made.duration_s) == (1, 1)


def test_one_bound_alone_is_enough_for_goodput() -> None:
    made = simulated(log(first_ms=100, end_ms=900))
    for sla, good in ((Sla(ttft_ms=100), 1), (Sla(itl_ms=79), 0), (Sla(itl_ms=80), 1)):
        goodput = report(made, CLUSTER, router="r", speedup=1, sla=sla).goodput
        assert goodput is not None
        assert goodput.requests == good


def test_nothing_completed_is_no_division_by_zero() -> None:
    made = report(simulated(log(error="no")), CLUSTER, router="r", speedup=1)
    assert (made.completed, made.hit_rate, made.ttft_ms.p99) == (0, 0, 0)
