from __future__ import annotations

from math import exp

import pytest

from dynamo_core.contracts import ModelCard, WorkerView
from dynamo_kv_router.cost import YOUTH_RATES, YOUTH_SHARES, Clock, Weights, costs
from dynamo_kv_router.load import WorkerLoad
from dynamo_kv_router.speed import PrefillSpeed

WEIGHTS = Weights()
CARD = ModelCard(name="m", path="", block_size=16, total_kv_blocks=1000)


def test_three_exponentials_stand_for_the_hyperbola() -> None:
    assert sum(YOUTH_SHARES) == pytest.approx(1)
    for x in range(150):
        approximation = sum(share * exp(-rate * x) for share, rate in zip(YOUTH_SHARES, YOUTH_RATES, strict=True))
        assert approximation == pytest.approx(1 / (1 + x), abs=0.025)


def test_the_cost_is_the_formula() -> None:
    clock, speed = Clock(WEIGHTS, 0.0), PrefillSpeed()
    load = WorkerLoad(WorkerView(1, CARD))
    load.begin(3000, 80.0, 0.0)
    load.begin(2000, 40.0, 0.0)
    clock.tick(50.0)
    load.first_token(3000, 80.0, 0.0, clock)
    clock.tick(270.0)
    row, tokens, new, w = load.row(WEIGHTS, 1.0), 1000, 360, WEIGHTS
    own = new * speed.token_ms
    (cost,) = costs([row], [own], tokens, clock, speed, w.affinity)
    wait = 270 - 90  # its last prompt should have been done at 50 + 40
    age = clock.youth(50.0)
    young = 1 + sum(a * f for a, f in zip(age, clock.fading, strict=True))
    p, p0 = 6000 / 16000, 1000 / 16000
    decode = speed.token_ms * 16000 * (p - w.shape * (p * p - p0 * p0))
    assert cost == pytest.approx(wait + own * (w.affinity + w.crowd * 2 + w.youth * young) + w.decode * decode)


def test_ages_survive_the_reference_time_moving() -> None:
    clock = Clock(WEIGHTS, 0.0)
    load = WorkerLoad(WorkerView(1, CARD))
    load.begin(10, 1.0, 0.0)
    load.begin(10, 1.0, 0.0)
    load.first_token(10, 1.0, 0.0, clock)
    moved = 0
    for now in range(0, 60_000, 1000):
        factors = clock.tick(float(now))
        if factors is not None:
            moved += 1
            load.fade(factors)
    young = sum(y * f for y, f in zip(load.youth, clock.fading, strict=True))
    x = 59_000 / WEIGHTS.tau_ms
    assert moved > 5
    assert young == pytest.approx(sum(s * exp(-r * x) for s, r in zip(YOUTH_SHARES, YOUTH_RATES, strict=True)))
    load.end(10, 1.0, None, clock)
    load.end(10, 1.0, 0.0, clock)
    assert load.youth == (0.0, 0.0, 0.0)


def test_an_overdue_worker_gets_dearer() -> None:
    clock, speed = Clock(WEIGHTS, 0.0), PrefillSpeed()
    load = WorkerLoad(WorkerView(1, CARD))
    load.begin(100, 50.0, 0.0)
    prices = []
    for now in (10.0, 50.0, 5000.0):
        clock.tick(now)
        prices += costs([load.row(WEIGHTS, 1.0)], [1.0], 100, clock, speed, WEIGHTS.affinity)
    assert prices[1] < prices[0] < prices[2]


def test_more_than_fits_is_never_cheaper_than_a_full_cache() -> None:
    loads = []
    for tokens in range(0, 40_000, 1000):
        load = WorkerLoad(WorkerView(1, CARD))
        load.begin(tokens, 1.0, 0.0)
        row = load.row(WEIGHTS, 1.0)
        loads.append(row.load)
        assert row.slope > 0
    assert loads == sorted(loads)


def test_first_tokens_of_one_step_are_one_observation() -> None:
    clock = Clock(WEIGHTS, 0.0)
    load = WorkerLoad(WorkerView(1, CARD))
    for _ in range(3):
        load.begin(100, 5.0, 0.0)
    clock.tick(40.0)
    assert load.first_token(100, 5.0, 0.0, clock) is None
    clock.tick(40.5)
    assert load.first_token(60, 5.0, 0.0, clock) is None
    clock.tick(60.0)
    assert load.first_token(80, 5.0, 0.0, clock) == (160, 40.5)
    assert load.measured(70.0) == (80, 19.5)
    assert load.measured(80.0) is None
    assert load.busy_until == 0
