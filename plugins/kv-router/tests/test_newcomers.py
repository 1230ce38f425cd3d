"""A worker that joins others that are nearly idle and have cached what everybody asks for."""

from __future__ import annotations

import random
from itertools import count
from typing import Any

import pytest

from dynamo_core.contracts import KvCleared, KvStored
from dynamo_core.kv import sequence_hashes
from dynamo_core.simulator import Change, Cluster, RequestLog, Simulation, Trace, TraceRequest
from dynamo_kv_router.router import KvRouter
from dynamo_kv_router.weights import Weights

SIZE = 16
BLOCK, SHARED, OWN = 64, 64, 4
JOINS_MS = 20_000.0


def shared_prefix(warm: int, a_second: float) -> Trace:
    """Prompts of 4,352 tokens of which 4,096 are everybody's: thirty a worker at once, a pause, and then few."""
    lots, fresh = random.Random(1), count(SHARED)
    arrivals = [i * 20.0 / warm for i in range(30 * warm)]
    at = 10_000.0
    while at < 70_000:
        arrivals.append(at)
        at += 1000 / a_second * lots.uniform(0.5, 1.5)
    requests = []
    for arrival in arrivals:
        blocks = (*range(SHARED), *(next(fresh) for _ in range(OWN)))
        requests.append(TraceRequest(arrival, len(blocks) * BLOCK, lots.randint(20, 80), blocks))
    return Trace(tuple(requests), BLOCK)


def served(trace: Trace, warm: int, weights: Weights) -> tuple[RequestLog, ...]:
    cluster = Cluster(workers=warm, blocks=4096, block_size=BLOCK, changes=(Change(JOINS_MS, 1),))
    return Simulation(trace, cluster, lambda context: KvRouter(None, context, weights=weights)).run().requests


@pytest.mark.parametrize("warm", [1, 2, 4])
def test_who_joins_a_nearly_idle_fleet_serves_within_five_seconds_at_one_request_a_second(warm: int) -> None:
    trace, newcomer = shared_prefix(warm, 1.0), warm + 1
    requests, without = served(trace, warm, Weights()), served(trace, warm, Weights(welcome=0.0))
    assert {r.worker_id for r in requests if r.at_ms < JOINS_MS} == set(range(1, newcomer))
    assert newcomer not in {r.worker_id for r in without}, "cost alone never sends anything there"
    at = [r.routed_ms - JOINS_MS for r in requests if r.worker_id == newcomer]
    assert at[0] <= 5000
    late = sum(r.at_ms >= JOINS_MS for r in requests)
    assert len(at) >= 0.8 * late / newcomer, "from there on it has its share"
    cold_ms = Cluster().timing.prefill_ms((SHARED + OWN) * BLOCK)
    more = sum(r.first_ms - r.at_ms for r in requests) - sum(r.first_ms - r.at_ms for r in without)
    assert more <= cold_ms


def prompt(lots: random.Random, length: int) -> list[int]:
    return [lots.randrange(32_000) for _ in range(length)]


def cached(fleet: Any, tokens: list[int], *workers: int) -> None:
    for worker in workers:
        fleet.tell(worker, KvStored(tuple(sequence_hashes(tokens, SIZE))))


def test_it_gets_what_costs_little_there_rather_than_a_long_conversation(make_fleet: Any) -> None:
    fleet, lots = make_fleet(2), random.Random(2)
    common, conversation = prompt(lots, 1600), prompt(lots, 16_000)
    cached(fleet, common, 1, 2)
    cached(fleet, conversation, 1)
    assert {fleet.serve(common).worker_id for _ in range(2)} == {1, 2}
    fleet.join(9)
    fleet.now += 0.3
    assert fleet.serve(conversation).worker_id == 1
    assert fleet.serve(common).worker_id == 9


def test_it_happens_once(make_fleet: Any) -> None:
    fleet, lots = make_fleet(2), random.Random(3)
    one, other = prompt(lots, 1600), prompt(lots, 1600)
    cached(fleet, one, 1, 2)
    cached(fleet, other, 1, 2)
    assert {fleet.serve(one).worker_id for _ in range(2)} == {1, 2}
    fleet.join(9)
    fleet.now += 60
    assert fleet.serve(one).worker_id == 9
    fleet.now += 60
    assert fleet.serve(other).worker_id != 9


def test_what_nobody_has_cached_is_not_what_it_waits_for(make_fleet: Any) -> None:
    fleet, lots = make_fleet(2), random.Random(4)
    common = prompt(lots, 1600)
    cached(fleet, common, 1, 2)
    assert {fleet.serve(common).worker_id for _ in range(2)} == {1, 2}
    fleet.join(9)
    assert fleet.serve(prompt(lots, 40)).worker_id == 9
    fleet.now += 5
    assert 9 in {fleet.serve(common).worker_id for _ in range(3)}, "when it is its turn"


def test_workers_that_were_there_before_the_first_request_are_no_newcomers(make_fleet: Any) -> None:
    fleet, lots = make_fleet(3), random.Random(5)
    tokens = prompt(lots, 1600)
    first = fleet.serve(tokens).worker_id
    cached(fleet, tokens, first)
    for _ in range(5):
        fleet.now += 60
        assert fleet.serve(tokens).worker_id == first


def test_a_newcomer_that_leaves_before_its_first_prompt_is_forgotten(make_fleet: Any) -> None:
    fleet, lots = make_fleet(2), random.Random(6)
    tokens = prompt(lots, 1600)
    cached(fleet, tokens, 1)
    fleet.serve(tokens)
    fleet.join(9)
    fleet.leave(9)
    fleet.now += 60
    assert fleet.serve(tokens).worker_id == 1


def test_a_worker_that_was_only_out_of_sight_is_no_newcomer(make_fleet: Any) -> None:
    fleet, lots = make_fleet(3), random.Random(7)
    one, other = prompt(lots, 1600), prompt(lots, 1600)
    cached(fleet, one, 1)
    cached(fleet, other, 2)
    assert fleet.serve(one).worker_id == 1
    fleet.leave(2)
    fleet.join(2)
    fleet.tell(2, KvCleared(), KvStored(tuple(sequence_hashes(other, SIZE))))
    for _ in range(3):
        fleet.now += 60
        assert fleet.serve(one).worker_id == 1
        assert fleet.serve(other).worker_id == 2


def test_a_newcomer_whose_state_is_fetched_again_stays_one(make_fleet: Any) -> None:
    fleet, lots = make_fleet(2), random.Random(8)
    common, own = prompt(lots, 1600), prompt(lots, 40)
    cached(fleet, common, 1, 2)
    assert {fleet.serve(common).worker_id for _ in range(2)} == {1, 2}
    fleet.join(9)
    assert fleet.serve(own).worker_id == 9
    cached(fleet, own, 9)
    fleet.tell(9, KvCleared(), KvStored(tuple(sequence_hashes(own, SIZE))))
    fleet.now += 60
    assert 9 in {fleet.serve(common).worker_id for _ in range(3)}
