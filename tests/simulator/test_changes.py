"""Workers that join and leave under the real router."""

from __future__ import annotations

import random

from dynamo_core.simulator import Change, Cluster, Simulated, Simulation, Trace, TraceRequest
from dynamo_kv_router.router import KvRouter

SIZE, AT = 16, 12_000.0


def conversations(seconds: float = 30, rate: float = 50) -> Trace:
    """People who take turns at random, each turn a few blocks longer than the last; now and then somebody begins."""
    lots = random.Random(5)
    turns = [0] * 60
    requests = []
    for i in range(int(seconds * rate)):
        if i % 8 == 0:
            turns.append(0)
        who = len(turns) - 1 if i % 8 == 0 else lots.randrange(len(turns))
        turns[who] += 1
        blocks = [0, 1, *(100 * (who + 1) + turn for turn in range(3 * turns[who]))]
        requests.append(TraceRequest(i * 1000 / rate, len(blocks) * SIZE, 100, tuple(blocks)))
    return Trace(tuple(requests), SIZE)


def simulate(trace: Trace, *changes: Change, workers: int = 4) -> Simulated:
    cluster = Cluster(workers=workers, blocks=4096, block_size=SIZE, changes=changes)
    return Simulation(trace, cluster, lambda context: KvRouter(None, context)).run()


def late_ttft(simulated: Simulated) -> float:
    """In the mean, of requests after ``AT``."""
    logs = [log for log in simulated.requests if log.routed_ms >= AT]
    return sum(log.first_ms - log.at_ms for log in logs) / len(logs)


def found_again(trace: Trace, simulated: Simulated) -> float:
    """Of those whose last turn before ``AT`` was not on worker 1: the share whose next turn found it."""
    last: dict[int, int] = {}
    found = []
    for request, log in zip(trace.requests, simulated.requests, strict=True):
        person = request.blocks[2]
        if log.routed_ms >= AT and last.get(person, 1) != 1:
            found.append(log.overlap_blocks > 2)
        last[person] = log.worker_id if log.routed_ms < AT else 1
    assert len(found) > 50
    return sum(found) / len(found)


def test_a_worker_that_joins_gets_traffic_within_seconds() -> None:
    simulated = simulate(conversations(), Change(AT, 1))
    to_it = [log.routed_ms for log in simulated.requests if log.worker_id == 5]
    assert AT <= min(to_it) < AT + 2000
    assert len([at for at in to_it if at < AT + 10_000]) > 10


def test_a_worker_that_leaves_costs_nothing_but_its_own_cache() -> None:
    trace = conversations()
    whole, left = simulate(trace), simulate(trace, Change(AT, -1))
    assert all(log.end_ms >= 0 for log in left.requests)
    assert left.faults == ()
    before = [log for log in left.requests if log.routed_ms < AT]
    assert [log.worker_id for log in before] == [log.worker_id for log in whole.requests[: len(before)]]
    assert all(log.worker_id != 1 for log in left.requests[len(before) :])
    # Who was on the other workers finds nearly as much of what was said as if nobody had left, with a third more load on each;
    # and those three serve as well as if they had been alone from the beginning.
    assert found_again(trace, left) >= found_again(trace, whole) - 0.1
    assert late_ttft(left) < 1.05 * late_ttft(simulate(trace, workers=3))


def test_when_all_but_one_have_left_it_still_serves() -> None:
    simulated = simulate(conversations(), Change(AT, -3), Change(AT + 5000, 2))
    assert all(log.end_ms >= 0 for log in simulated.requests)
    assert {log.worker_id for log in simulated.requests if AT < log.routed_ms < AT + 5000} == {4}
    assert {log.worker_id for log in simulated.requests if log.routed_ms > AT + 10_000} == {4, 5, 6}
