"""An exchange that is over is freed at once, without the garbage collector."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterator
from typing import Any

import pytest

from dynamo_core.http.exchange import Exchange
from dynamo_core.http.reply import GenerationReply
from dynamo_core.http.sse import EventStream
from dynamo_core.http.unary import Collector
from dynamo_core.http.writer import DirectWriter
from dynamo_core.serving.record import RequestRecord

KINDS = (Exchange, RequestRecord, GenerationReply, EventStream, Collector, DirectWriter)


@pytest.fixture
def uncollected() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def left() -> list[str]:
    return [type(found).__name__ for found in gc.get_objects() if isinstance(found, KINDS)]


@pytest.mark.usefixtures("uncollected")
@pytest.mark.parametrize("stream", [False, True])
async def test_nothing_is_left_of_an_exchange(serve: Any, stream: bool) -> None:
    running = await serve()
    running.model.script = lambda played: played.say("Hel", "lo")
    before = left()
    for _ in range(3):
        response = await running.chat(stream=stream)
        assert response.status_code == 200
    while not running.model.generations.empty():
        running.model.generations.get_nowait()
    for _ in range(5):
        await asyncio.sleep(0)
    assert left() == before
