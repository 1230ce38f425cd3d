"""A generation that is over is freed at once: what waits for the garbage collector makes everybody wait for it later."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterator
from typing import Any

import pytest

from dynamo_core.contracts import StopConditions
from dynamo_core.serving.choice import Choice
from dynamo_core.serving.generation import Generation
from dynamo_core.serving.sequence import Leg, Sequence
from dynamo_core.serving.timeouts import StreamTimer, Timeouts

KINDS = (Generation, Choice, Sequence, Leg, StreamTimer)


def left() -> list[str]:
    return [type(found).__name__ for found in gc.get_objects() if isinstance(found, KINDS)]


@pytest.fixture
def uncollected() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("uncollected")
@pytest.mark.parametrize("end", ["complete", "stop string", "error", "kill", "stop", "lost"])
@pytest.mark.parametrize("n", [1, 3])
async def test_nothing_is_left_of_a_generation(stage: Any, end: str, n: int) -> None:
    before = left()
    on = stage(timeouts=Timeouts(total=60, first_token=60, token=60))
    asked = on.generate("abc", n=n, stop=("END",), conditions=StopConditions(max_tokens=100))
    for _ in range(3):
        await asyncio.sleep(0)
    for stream in on.streams:
        stream.items(ord("x"))
        if end == "complete":
            stream.end({"finish_reason": "stop"})
        elif end == "stop string":
            stream.items(*map(ord, "END"))
        elif end == "error":
            stream.items({"finish_reason": "error", "error": "broken"})
        elif end == "stop":
            asked.context.stop_generating()
            stream.end({"finish_reason": "cancelled"})
        elif end == "lost":
            stream.end()
    if end == "kill":
        asked.context.kill()
    assert asked.sink.ended is (end != "kill")
    del asked, stream
    on.workers.streams.clear()
    on.router.__dict__.clear()
    await asyncio.sleep(0)
    assert left() == before
