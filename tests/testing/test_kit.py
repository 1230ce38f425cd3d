"""The kit itself: broken engines and routers are caught, runtimes of one process find each other."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from dynamo_core.contracts import Context, EngineChunk, EngineInfo, EngineRequest, Route, StopConditions
from dynamo_core.testing import (
    EngineContract,
    FakeClock,
    InprocCluster,
    RouterContract,
    ScriptedEngine,
    engine_context,
    next_token,
    scripted_engine,
)


class Talkative(ScriptedEngine):
    """Does not keep to max_tokens."""

    async def generate(self, request: EngineRequest, context: Context) -> AsyncIterator[EngineChunk]:
        yield EngineChunk(tuple(range(request.stop.max_tokens + 1)), finish_reason="stop")


class Deaf(ScriptedEngine):
    """Does not look at its context."""

    async def generate(self, request: EngineRequest, context: Context) -> AsyncIterator[EngineChunk]:
        async for chunk in super().generate(request, Context()):
            yield chunk


class Blind:
    """Chooses the same worker, whatever happened there."""

    def select(self, requests: Any, workers: Any) -> Any:
        return [Route(1) for _ in requests]


def suite(make: Any) -> Any:
    return type("Suite", (EngineContract,), {"make_engine": lambda self: make(engine_context())})()


async def test_engines_that_break_their_promises_are_caught() -> None:
    with pytest.raises(AssertionError):
        await suite(Talkative).test_a_stream_ends_with_one_finish_reason_and_keeps_to_max_tokens()
    with pytest.raises(AssertionError):
        await suite(Deaf).test_a_stopped_context_ends_the_stream_soon()


def test_routers_that_break_their_promises_are_caught() -> None:
    made = type("Suite", (RouterContract,), {"make_router": lambda self, context: Blind()})()
    with pytest.raises(AssertionError, match="not chosen again"):
        made.test_it_leaves_out_workers_that_failed_the_request()
    with pytest.raises(AssertionError, match="offered"):
        made.test_without_workers_it_holds_or_refuses()


async def test_runtimes_of_a_cluster_find_each_other() -> None:
    async with InprocCluster() as cluster:
        server, caller = await cluster.runtime(), await cluster.runtime()

        async def hello(request: str) -> AsyncIterator[str]:
            yield f"Hello {request}!"

        served = await server.endpoint("a.b.c").serve(lambda request, context, sink: (sink.item(request), sink.end())[0])
        client = await caller.endpoint("a.b.c").client()
        assert await client.wait_for_instances(10) == [1]
        assert [item async for item in client.generate(5, annotated=False)] == [5]
        await served.close()


async def test_a_scripted_engine_waits_fails_and_notes_what_it_was_asked() -> None:
    engines: list[ScriptedEngine] = []
    provider = scripted_engine(engines.append)
    engine = provider.spec.factory(None, engine_context(model_name="x"))
    assert engines == [engine]
    assert isinstance(await engine.start(), EngineInfo)
    request = EngineRequest(id="a", token_ids=[1, 2], stop=StopConditions(max_tokens=3))
    engine.gate.clear()
    context = Context()
    stream = engine.generate(request, context)
    context.stop_generating()
    assert [chunk.finish_reason async for chunk in stream] == ["cancelled"]
    engine.gate.set()
    engine.fails, engine.fail_at = RuntimeError("boom"), 1
    stream = engine.generate(request, Context())
    assert (await anext(stream)).token_ids == (next_token([1, 2]),)
    with pytest.raises(RuntimeError, match="boom"):
        await anext(stream)
    assert (len(engine.requests), engine.cancelled, engine.running) == (2, 1, 0)
    await engine.stop()


def test_a_fake_clock_moves_when_it_is_told() -> None:
    clock = FakeClock(5)
    clock.advance(2.5)
    assert clock() == 7.5
    with pytest.raises(ValueError, match="backwards"):
        clock.advance(-1)
