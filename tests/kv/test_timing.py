from __future__ import annotations

import pytest

from dynamo_core.kv.timing import Chunk, TimingModel, prefill_tokens


def test_prefill_and_decode_are_dynamos_polynomials() -> None:
    model = TimingModel()
    assert model.prefill_ms(1000) == pytest.approx(4.209989e-7 * 1000**2 + 1.518344e-2 * 1000 + 16.50142)
    assert model.decode_ms(500, 1000) == pytest.approx(-25.74 * 0.25 + 54.01 * 0.5 + 5.74)


def test_nothing_to_do_takes_no_time() -> None:
    assert (TimingModel().prefill_ms(0), TimingModel().decode_ms(0, 10), TimingModel().step_ms((), 0, 10)) == (0, 0, 0)


def test_a_step_takes_both_parts_divided_by_the_speed_up() -> None:
    chunks, fast = (Chunk(0, 100),), TimingModel(speedup_ratio=4)
    full = TimingModel()
    assert fast.step_ms(chunks, 10, 100) == pytest.approx((full.prefill_ms(100) + full.decode_ms(10, 100)) / 4)
    assert TimingModel(speedup_ratio=0).step_ms(chunks, 10, 100) == 0


def test_decoding_has_a_speed_up_of_its_own_on_top() -> None:
    model = TimingModel(speedup_ratio=2, decode_speedup_ratio=0.5)
    assert model.decode_ms(10, 100) == pytest.approx(TimingModel().decode_ms(10, 100))
    assert model.prefill_ms(100) == pytest.approx(TimingModel().prefill_ms(100) / 2)
    assert TimingModel(decode_speedup_ratio=0).decode_ms(10, 100) == 0


def test_prompt_tokens_are_counted_by_rounded_means() -> None:
    assert prefill_tokens(()) == 0
    assert prefill_tokens((Chunk(3, 10),)) == 7
    assert prefill_tokens((Chunk(0, 10), Chunk(5, 10))) == 2 * (10 - 2)
