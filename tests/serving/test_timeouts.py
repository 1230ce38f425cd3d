"""Requests that take too long: in all, to the first token, between two tokens."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from dynamo_core.errors import DeadlineExceeded
from dynamo_core.serving.timeouts import Timeouts


async def ended(asked: Any) -> Any:
    async with asyncio.timeout(10):
        while not asked.sink.ended:  # noqa: ASYNC110  # the sink has no event, and this is about time
            await asyncio.sleep(0.005)
    return asked.sink.error


@pytest.mark.parametrize(
    ("timeouts", "code"),
    [
        (Timeouts(total=0.05), "deadline_exceeded"),
        (Timeouts(first_token=0.05), "first_token_timeout"),
        (Timeouts(first_token=0.05, token=5, total=5), "first_token_timeout"),
    ],
)
async def test_a_first_token_that_does_not_come(stage: Any, timeouts: Timeouts, code: str) -> None:
    made = stage(timeouts=timeouts)
    asked = made.generate()
    error = await ended(asked)
    assert (type(error), error.status, error.code) == (DeadlineExceeded, 504, code)
    assert made.streams[0].cancelled == [True]  # the engine's sequence is freed
    assert made.router.outcomes() == ["failed"]
    assert made.idle()


@pytest.mark.parametrize("first", [0.0, 5.0])
async def test_a_stream_that_falls_silent(stage: Any, first: float) -> None:
    made = stage(timeouts=Timeouts(first_token=first, token=0.1))
    asked = made.generate()
    await asyncio.sleep(0)
    for _ in range(4):  # longer than the limit in all, never as long between two
        made.streams[0].items(ord("x"))
        await asyncio.sleep(0.04)
    assert not asked.sink.ended
    error = await ended(asked)
    assert (error.code, asked.sink.texts[0]) == ("token_timeout", "xxxx")


async def test_a_slow_reader_is_not_a_slow_engine(stage: Any) -> None:
    made = stage(timeouts=Timeouts(token=0.05))
    asked = made.generate()
    await asyncio.sleep(0)
    made.streams[0].items(ord("x"))
    asked.generation.pause()
    await asyncio.sleep(0.2)
    assert not asked.sink.ended
    asked.generation.resume()
    assert (await ended(asked)).code == "token_timeout"


async def test_no_limits_need_no_timer(stage: Any) -> None:
    made = stage()
    asked = made.generate()
    await asyncio.sleep(0)
    assert asked.generation._timer._timer is None
    made.streams[0].end(ord("x"), {"finish_reason": "stop"})
    assert asked.sink.error is None


async def test_workers_are_told_the_deadline(stage: Any) -> None:
    made = stage(timeouts=Timeouts(total=60))
    asked = made.generate()
    await asyncio.sleep(0)
    assert made.streams[0].context.deadline == asked.context.deadline
    assert asked.context.deadline is not None
    asked.context.kill()
