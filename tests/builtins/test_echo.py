from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from dynamo_core.builtins.echo import EchoEngine
from dynamo_core.contracts import Context, EngineChunk, EngineContext, EngineRequest, StepEngine, StopConditions
from dynamo_core.errors import ConfigError


def context(**args: Any) -> EngineContext:
    return EngineContext(model_path="", model_name="m", worker_id=1, args=args)


@pytest.fixture
async def engine() -> AsyncIterator[EchoEngine]:
    engine = EchoEngine(None, context())
    await engine.start()
    yield engine
    await engine.stop()


async def collect(engine: EchoEngine, request: EngineRequest, ctx: Context | None = None) -> list[EngineChunk]:
    return [chunk async for chunk in engine.generate(request, ctx or Context())]


def tokens(chunks: list[EngineChunk]) -> list[int]:
    return [token for chunk in chunks for token in chunk.token_ids]


async def test_it_answers_with_the_prompt_and_stops(engine: EchoEngine) -> None:
    chunks = await collect(engine, EngineRequest(id="a", token_ids=[5, 6, 7], stop=StopConditions(max_tokens=10)))
    assert tokens(chunks) == [5, 6, 7]
    assert chunks[-1].finish_reason == "stop"
    assert chunks[0].cached_tokens == 0


async def test_max_tokens_ends_it_with_length(engine: EchoEngine) -> None:
    chunks = await collect(engine, EngineRequest(id="a", token_ids=[5, 6, 7], stop=StopConditions(max_tokens=2)))
    assert tokens(chunks) == [5, 6]
    assert chunks[-1].finish_reason == "length"


async def test_a_stop_token_ends_it_and_is_not_emitted(engine: EchoEngine) -> None:
    stop = StopConditions(max_tokens=9, stop_token_ids=(6,))
    chunks = await collect(engine, EngineRequest(id="a", token_ids=[5, 6, 7], stop=stop))
    assert tokens(chunks) == [5]
    assert (chunks[-1].finish_reason, chunks[-1].stop_reason) == ("stop", 6)


async def test_logprobs_come_with_every_token(engine: EchoEngine) -> None:
    request = EngineRequest(id="a", token_ids=[5, 6], stop=StopConditions(max_tokens=9), logprobs=1)
    chunks = await collect(engine, request)
    assert [entry.token_id for chunk in chunks for entry in chunk.logprobs or ()] == [5, 6]


async def test_a_stopped_context_ends_it_within_one_step(engine: EchoEngine) -> None:
    ctx = Context()
    got: list[EngineChunk] = []
    async for chunk in engine.generate(EngineRequest(id="a", token_ids=range(1000), stop=StopConditions(max_tokens=999)), ctx):
        got.append(chunk)
        ctx.stop_generating()
    assert got[-1].finish_reason == "cancelled"
    assert len(tokens(got)) <= 2
    assert engine.load().running == 0


async def test_closing_the_generator_frees_the_sequence(engine: EchoEngine) -> None:
    stream = engine.generate(EngineRequest(id="a", token_ids=range(1000), stop=StopConditions(max_tokens=999)), Context())
    await anext(stream)
    await stream.aclose()  # type: ignore[attr-defined]  # it is a generator
    assert engine.load().running == 0


async def test_many_streams_advance_together(engine: EchoEngine) -> None:
    requests = [EngineRequest(id=str(i), token_ids=[i] * 5, stop=StopConditions(max_tokens=5)) for i in range(20)]
    results = await asyncio.gather(*(collect(engine, request) for request in requests))
    assert [tokens(chunks) for chunks in results] == [[i] * 5 for i in range(20)]


def test_an_unknown_argument_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="dellay"):
        EchoEngine(None, context(dellay=3))


def test_it_is_a_step_engine() -> None:
    assert isinstance(EchoEngine(None, context()), StepEngine)
