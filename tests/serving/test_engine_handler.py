"""Engines of both kinds on the request plane's sink."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from dynamo_core.contracts import Context, EngineChunk, EngineInfo, EngineRequest, EngineSink
from dynamo_core.errors import DynamoError, EngineError, EngineShutdown, InvalidRequest, ProtocolError
from dynamo_core.serving.engine_handler import EngineHandler
from dynamo_core.serving.wire import encode_request

REQUEST = encode_request(EngineRequest(id="r", token_ids=[1, 2, 3]))


class Sink:
    def __init__(self) -> None:
        self.items: list[Any] = []
        self.error_: DynamoError | None = None
        self.done = asyncio.Event()
        self.got = asyncio.Event()

    def item(self, value: Any) -> None:
        assert not self.done.is_set()
        self.items.append(value)
        self.got.set()

    def end(self) -> None:
        assert not self.done.is_set()
        self.done.set()

    def error(self, error: DynamoError) -> None:
        assert not self.done.is_set()
        self.error_ = error
        self.done.set()

    async def ready(self) -> None:
        pass


class Steps:
    """A step engine that the test steps."""

    def __init__(self, refuse: Exception | None = None) -> None:
        self.sinks: list[EngineSink] = []
        self.contexts: list[Context] = []
        self.refuse = refuse

    async def start(self) -> EngineInfo:
        return EngineInfo()

    async def generate(self, request: EngineRequest, context: Context) -> AsyncIterator[EngineChunk]:
        raise NotImplementedError
        yield EngineChunk()

    async def stop(self) -> None: ...

    def submit(self, request: EngineRequest, sink: EngineSink, context: Context) -> None:
        if self.refuse is not None:
            raise self.refuse
        self.sinks.append(sink)
        self.contexts.append(context)


class Chunks:
    """An engine without steps: yields what it is given, then waits for ever or raises."""

    def __init__(self, *chunks: EngineChunk | Exception, wait: bool = False) -> None:
        self.chunks = chunks
        self.wait = wait
        self.closed = asyncio.Event()

    async def start(self) -> EngineInfo:
        return EngineInfo()

    async def stop(self) -> None: ...

    async def generate(self, request: EngineRequest, context: Context) -> AsyncIterator[EngineChunk]:
        try:
            for chunk in self.chunks:
                if isinstance(chunk, Exception):
                    raise chunk
                yield chunk
            if self.wait:
                await asyncio.Event().wait()
        finally:
            self.closed.set()


async def test_a_step_engine_writes_bare_tokens_as_integers() -> None:
    engine, sink = Steps(), Sink()
    handler = EngineHandler(engine)
    handler(REQUEST, Context(), sink)
    (out,) = engine.sinks
    out.chunk(EngineChunk((7,), cached_tokens=2))
    out.token(8)
    out.chunk(EngineChunk((9,)))
    assert handler.running == 1
    out.chunk(EngineChunk(finish_reason="stop", stop_reason=3))
    assert sink.items == [{"token_ids": (7,), "cached_tokens": 2}, 8, 9, {"finish_reason": "stop", "stop_reason": 3}]
    assert sink.done.is_set()
    assert handler.running == 0
    out.token(10)
    out.chunk(EngineChunk(finish_reason="stop"))  # what comes too late is dropped


async def test_a_killed_stream_counts_no_longer_and_the_engine_may_say_goodbye() -> None:
    engine, sink, context = Steps(), Sink(), Context()
    handler = EngineHandler(engine)
    handler(REQUEST, context, sink)
    context.kill()
    assert handler.running == 0
    engine.sinks[0].chunk(EngineChunk(finish_reason="cancelled"))
    assert sink.items == []


async def test_a_stopped_stream_ends_with_the_engines_last_chunk() -> None:
    engine, sink, context = Steps(), Sink(), Context()
    handler = EngineHandler(engine)
    handler(REQUEST, context, sink)
    context.stop_generating()
    assert handler.running == 1
    engine.sinks[0].chunk(EngineChunk(finish_reason="cancelled"))
    assert sink.items == [{"finish_reason": "cancelled"}]
    assert sink.done.is_set()


@pytest.mark.parametrize(
    ("raised", "told"),
    [(InvalidRequest("too long", param="prompt"), InvalidRequest), (RuntimeError("CUDA"), EngineError)],
)
async def test_what_an_engine_raises_on_purpose_reaches_the_client_and_the_rest_stays_here(
    raised: Exception, told: type[DynamoError], caplog: pytest.LogCaptureFixture
) -> None:
    for engine in (Steps(refuse=raised), Chunks(EngineChunk((1,)), raised)):
        sink = Sink()
        handler = EngineHandler(engine)
        handler(REQUEST, Context(), sink)
        await sink.done.wait()
        assert type(sink.error_) is told
        assert "CUDA" not in sink.error_.message
        assert handler.running == 0
        assert ("CUDA" in caplog.text) is (told is EngineError)


async def test_an_error_chunk_is_an_error_without_the_engines_words(caplog: pytest.LogCaptureFixture) -> None:
    engine, sink = Steps(), Sink()
    EngineHandler(engine)(REQUEST, Context(), sink)
    engine.sinks[0].chunk(EngineChunk(finish_reason="error", error="CUDA"))
    assert isinstance(sink.error_, EngineError)
    assert "CUDA" not in sink.error_.message
    assert "CUDA" in caplog.text


async def test_a_request_that_is_none_is_refused() -> None:
    with pytest.raises(ProtocolError):
        EngineHandler(Steps())({"prompt": "x"}, Context(), Sink())


async def test_an_engine_without_steps_streams_its_chunks() -> None:
    engine, sink = Chunks(EngineChunk((1,)), EngineChunk((2, 3)), EngineChunk(finish_reason="length")), Sink()
    handler = EngineHandler(engine)
    handler(REQUEST, Context(), sink)
    await sink.done.wait()
    assert sink.items == [1, [2, 3], {"finish_reason": "length"}]
    await engine.closed.wait()
    await handler.close()


async def test_an_engine_that_forgets_the_finish_reason_has_failed() -> None:
    engine, sink = Chunks(EngineChunk((1,))), Sink()
    EngineHandler(engine)(REQUEST, Context(), sink)
    await sink.done.wait()
    assert isinstance(sink.error_, EngineError)


async def test_killing_closes_a_generator_that_waits() -> None:
    engine, sink, context = Chunks(EngineChunk((1,)), wait=True), Sink(), Context()
    handler = EngineHandler(engine)
    handler(REQUEST, context, sink)
    await sink.got.wait()
    context.kill()
    await engine.closed.wait()
    assert sink.items == [1]
    await handler.close()
    assert handler.running == 0


async def test_stopping_closes_a_generator_that_does_not_look(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dynamo_core.serving.engine_handler._STOP_GRACE", 0.01)
    engine, sink, context = Chunks(EngineChunk((1,)), wait=True), Sink(), Context()
    handler = EngineHandler(engine)
    handler(REQUEST, context, sink)
    await sink.got.wait()
    context.stop_generating()
    await sink.done.wait()
    assert sink.items == [1, {"finish_reason": "cancelled"}]
    assert engine.closed.is_set()
    await handler.close()


async def test_a_request_that_arrives_killed_is_not_begun() -> None:
    engine, context = Steps(), Context()
    context.kill()
    handler = EngineHandler(engine)
    handler(REQUEST, context, Sink())
    assert not engine.sinks
    assert handler.running == 0


async def test_abandoned_streams_end_with_the_error_and_nothing_after() -> None:
    steps, chunks = Steps(), Chunks(EngineChunk((1,)), wait=True)
    for engine in (steps, chunks):
        sink = Sink()
        handler = EngineHandler(engine)
        handler(REQUEST, Context(), sink)
        await asyncio.sleep(0)
        handler.abandon(EngineShutdown("over"))
        await handler.close()
        assert isinstance(sink.error_, EngineShutdown)
        assert handler.running == 0
    steps.sinks[0].token(5)
