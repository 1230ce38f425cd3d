from __future__ import annotations

import random

import pytest

from dynamo_kv_router.speed import DecodeSpeed, PrefillSpeed


def test_a_line_is_found_among_prompts_of_many_lengths() -> None:
    speed, lots = PrefillSpeed(), random.Random(1)
    for _ in range(60):
        tokens = lots.randrange(10, 8000)
        speed.observe(tokens, (30 + 0.05 * tokens) * lots.uniform(0.95, 1.05))
    assert speed.token_ms == pytest.approx(0.05, rel=0.1)
    assert speed.overhead_ms == pytest.approx(30, rel=0.4)


def test_prompts_of_one_length_scale_the_first_guess() -> None:
    speed = PrefillSpeed()
    for _ in range(10):
        speed.observe(512, 533)
    assert speed.predict(512) == pytest.approx(533)


@pytest.mark.parametrize("factor", [0.1, 50])
def test_a_faster_or_slower_machine_is_known_after_one_prompt(factor: float) -> None:
    speed = PrefillSpeed()
    expected = speed.predict(1000) * factor
    speed.observe(1000, expected)
    assert speed.predict(1000) == pytest.approx(expected)


def test_one_stall_does_not_undo_what_was_learned() -> None:
    speed = PrefillSpeed()
    for tokens in range(100, 2100, 100):
        speed.observe(tokens, 16 + 0.02 * tokens)
    speed.observe(1000, 60_000)
    assert speed.predict(1000) < 3 * (16 + 0.02 * 1000)


def test_nonsense_is_ignored_and_both_numbers_stay_positive() -> None:
    speed = PrefillSpeed()
    speed.observe(0, 5)
    speed.observe(5, 0)
    for tokens in range(100, 900, 100):
        speed.observe(tokens, 1000 - tokens)
    assert speed.token_ms > 0
    assert speed.overhead_ms >= 0


def answers(decode: DecodeSpeed, slope: float, *, seed: int = 1, count: int = 1000) -> None:
    """Of 20 to 600 tokens, beside 0 to 200,000 others; a step takes a while however little runs."""
    lots = random.Random(seed)
    for _ in range(count):
        running, length = lots.randrange(1, 200_000), lots.randrange(20, 600)
        decode.observe(running, length * (5 + slope / 310 * running))


@pytest.mark.parametrize("slope", [0.005, 0.02, 0.07])
def test_what_a_running_token_costs_is_found_whatever_the_lengths_of_answers(slope: float) -> None:
    decode = DecodeSpeed()
    answers(decode, slope)
    assert decode.slope(0.018) == pytest.approx(slope, rel=0.2)


def test_the_guess_stands_until_answers_beside_different_loads_were_seen() -> None:
    decode = DecodeSpeed()
    assert decode.slope(0.018) == 0.018
    for length in range(20, 600):
        decode.observe(50_000.0, length * 9.0)
    assert decode.slope(0.018) == pytest.approx(0.018)


def test_no_answers_push_the_price_far_from_the_guess() -> None:
    faster, slower = DecodeSpeed(), DecodeSpeed()
    for i in range(1, 1000):
        faster.observe(i * 100, 1e6 - i * 900)
        slower.observe(i * 100, i * 1e4)
    slower.observe(0, 5)
    slower.observe(5, -1)
    assert faster.slope(0.018) < 0
    assert faster.sober(0.018) == 0.018 / 2
    assert slower.sober(0.018) == 0.018 * 4


def test_a_doubt_holds_until_a_prompt_is_done_and_does_not_widen_what_is_believed_of_it() -> None:
    speed, steady = PrefillSpeed(), PrefillSpeed()
    for tokens in (100, 1000) * 10:
        for one in (speed, steady):
            one.observe(tokens, 10 + 0.05 * tokens)
    speed.slower(5.0)
    speed.slower(10.0)
    assert speed.predict(1000) == pytest.approx(50 * steady.predict(1000))
    assert speed.trust()
    assert not speed.trust()
    assert speed.predict(1000) == pytest.approx(steady.predict(1000))
    speed.slower(50.0)
    for one in (speed, steady):
        one.observe(1000, 10_000.0)
    assert speed.predict(1000) == pytest.approx(steady.predict(1000))
