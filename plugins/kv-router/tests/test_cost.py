from __future__ import annotations

from math import exp

import pytest

from dynamo_core.contracts import ModelCard, WorkerView
from dynamo_kv_router.cost import YOUTH_RATES, YOUTH_SHARES, Clock, costs
from dynamo_kv_router.load import PlaceLoad
from dynamo_kv_router.speed import FadingMean, PrefillSpeed
from dynamo_kv_router.weights import Weights

WEIGHTS = Weights()
RUNNING_MS = 0.0024
CARD = ModelCard(name="m", path="", block_size=16, total_kv_blocks=1000)


def test_three_exponentials_stand_for_the_hyperbola() -> None:
    assert sum(YOUTH_SHARES) == pytest.approx(1)
    for x in range(150):
        approximation = sum(share * exp(-rate * x) for share, rate in zip(YOUTH_SHARES, YOUTH_RATES, strict=True))
        assert approximation == pytest.approx(1 / (1 + x), abs=0.025)


def test_the_cost_is_the_formula() -> None:
    clock, speed = Clock(WEIGHTS, 0.0), PrefillSpeed()
    load = PlaceLoad(WorkerView(1, CARD))
    load.begin(3000, 3000, 80.0, 0.0)
    load.begin(2000, 2000, 40.0, 0.0)
    clock.tick(50.0)
    load.first_token(3000, 80.0, 0.0, clock, 0.02)
    clock.tick(270.0)
    row, tokens, new, w = load.row(WEIGHTS, 1.0, 500.0), 1000, 360, WEIGHTS
    own = new * speed.token_ms
    (cost,) = costs([row], [new], tokens, clock, speed, w.affinity, RUNNING_MS)
    wait = speed.overhead_ms + 270 - 90  # its last prompt should have been done at 50 + 40
    age = clock.youth(50.0)
    young = 1 + sum(a * f for a, f in zip(age, clock.fading, strict=True))
    decode = RUNNING_MS * 5000
    assert cost == pytest.approx(wait + own * (w.affinity + w.crowd * 2 + w.youth * young) + decode)


def test_ages_survive_the_reference_time_moving() -> None:
    clock = Clock(WEIGHTS, 0.0)
    load = PlaceLoad(WorkerView(1, CARD))
    load.begin(10, 10, 1.0, 0.0)
    load.begin(10, 10, 1.0, 0.0)
    load.first_token(10, 1.0, 0.0, clock, 0.1)
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
    load.end(10, 10, 1.0, None, clock)
    load.end(10, 10, 1.0, 0.0, clock)
    assert load.youth == (0.0, 0.0, 0.0)


def test_around_the_time_when_a_worker_should_be_done_it_is_never_cheaper_than_an_idle_one() -> None:
    clock, speed = Clock(WEIGHTS, 0.0), PrefillSpeed()
    idle, busy = PlaceLoad(WorkerView(1, CARD)), PlaceLoad(WorkerView(2, CARD))
    busy.begin(100, 100, 50.0, 0.0)
    rows = [idle.row(WEIGHTS, 1.0, 500.0), busy.row(WEIGHTS, 1.0, 500.0)]
    before = None
    for now in range(1, 150):
        clock.tick(float(now))
        idle_cost, busy_cost = costs(rows, [1.0, 1.0], 100, clock, speed, WEIGHTS.affinity, RUNNING_MS)
        assert busy_cost >= idle_cost
        assert before is None or abs(busy_cost - before) < 1.01, "and it does not jump"
        before = busy_cost


def test_an_overdue_worker_gets_dearer() -> None:
    clock, speed = Clock(WEIGHTS, 0.0), PrefillSpeed()
    load = PlaceLoad(WorkerView(1, CARD))
    load.begin(100, 100, 50.0, 0.0)
    prices = []
    for now in (10.0, 50.0, 5000.0):
        clock.tick(now)
        prices += costs([load.row(WEIGHTS, 1.0, 500.0)], [1.0], 100, clock, speed, WEIGHTS.affinity, RUNNING_MS)
    assert prices[1] < prices[0] < prices[2]


def test_what_is_sent_to_an_overdue_worker_or_taken_from_it_makes_it_no_less_late() -> None:
    load = PlaceLoad(WorkerView(1, CARD))
    load.begin(100, 100, 50.0, 0.0)
    load.begin(100, 100, 30.0, 10.0)
    assert load.wait_ms(20.0) == 60
    assert load.wait_ms(1080.0) == 1000
    load.begin(100, 100, 40.0, 1080.0)
    assert load.wait_ms(1080.0) == 1040
    clock = Clock(WEIGHTS, 0.0)
    clock.tick(1090.0)
    load.end(100, 100, 40.0, None, clock)
    assert load.wait_ms(1090.0) == 1010
    load.begin(100, 100, 40.0, 1090.0)
    load.first_token(100, 50.0, 0.0, clock, 0.35)
    assert load.wait_ms(1090.0) == 70, "a sign of life: what is left is believed again"
    load.end(100, 100, 40.0, None, clock)
    assert load.wait_ms(1090.0) == 30
    load.end(100, 100, 30.0, None, clock)
    assert load.wait_ms(1090.0) == 0


def test_a_prompt_that_does_not_fit_waits_until_enough_of_the_others_is_gone() -> None:
    clock, speed = Clock(WEIGHTS, 0.0), PrefillSpeed()

    def price(held: int, tokens: int, stay_ms: float) -> float:
        load = PlaceLoad(WorkerView(1, CARD))
        if held:
            load.begin(held, held, 1.0, 0.0)
            load.first_token(held, 1.0, 0.0, clock, 0.1)
        return costs([load.row(WEIGHTS, 1.0, stay_ms)], [1.0], tokens, clock, speed, WEIGHTS.affinity, RUNNING_MS)[0]

    fits = int(16_000 * (1 - WEIGHTS.spare))
    for held, tokens, wait in (
        (10_000, fits - 10_000, 0),
        (10_000, fits - 9_000, 50),
        (10_000, fits + 99_000, 500),
        (0, 99_000, 0),
    ):
        assert price(held, tokens, 500.0) - price(held, tokens, 0.0) == pytest.approx(wait)


def test_a_cache_of_unknown_size_always_has_room() -> None:
    load = PlaceLoad(WorkerView(1, ModelCard(name="m", path="")))
    load.begin(10**9, 10**9, 1.0, 0.0)
    assert load.row(WEIGHTS, 1.0, 500.0).room == float("inf")


def test_the_mean_stay_follows_what_is_seen() -> None:
    stay = FadingMean()
    assert stay.value == 0
    for ms in (100.0, 300.0):
        stay.observe(ms)
    assert stay.value == pytest.approx(200, rel=0.02)
    for _ in range(300):
        stay.observe(1000.0)
    assert stay.value == pytest.approx(1000, rel=0.01)


def test_first_tokens_of_one_step_are_one_observation() -> None:
    clock = Clock(WEIGHTS, 0.0)
    load = PlaceLoad(WorkerView(1, CARD))
    for _ in range(3):
        load.begin(100, 100, 5.0, 0.0)
    seen = []
    for now, tokens in ((40.0, 100), (40.5, 60), (60.0, 80)):
        clock.tick(now)
        seen.append(load.measured(now))
        load.first_token(tokens, 5.0, 0.0, clock, 0.05)
    assert seen == [None, None, (160, 40.5)]
    assert load.measured(70.0) == (80, 19.5)
    assert load.measured(80.0) is None
    assert load.busy_until == 0
