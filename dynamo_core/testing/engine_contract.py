"""What every engine must do, as tests. Needs pytest with pytest-asyncio in auto mode."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

from dynamo_core.contracts import Context, Engine, EngineChunk, EngineInfo, EngineRequest, StepEngine, StopConditions
from dynamo_core.errors import DynamoError

__all__ = ["EngineContract"]

_SECONDS = 30.0
_STEP_SECONDS = 0.02


class _Sink:
    """Collects what a step engine emits, and notes what comes after the end."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.last: EngineChunk | None = None
        self.late = 0
        self.done = asyncio.Event()
        self.some = asyncio.Event()

    def token(self, token_id: int) -> None:
        self.chunk(EngineChunk((token_id,)))

    def chunk(self, chunk: EngineChunk) -> None:
        if self.last is not None:
            self.late += 1
        self.tokens.extend(chunk.token_ids)
        if chunk.token_ids:
            self.some.set()
        if chunk.finish_reason is not None:
            self.last = chunk
            self.done.set()
            self.some.set()


class EngineContract(ABC):
    """Subclass it as ``TestMyEngine`` and implement :meth:`make_engine`; change what does not fit your engine.

    Every test makes an engine of its own, starts and stops it.
    """

    prompt: tuple[int, ...] = tuple(range(5, 37))
    """Token ids that the engine takes."""
    endless: int = 1000
    """``max_tokens`` of a request that is cancelled in its middle; the engine must not end it long before."""

    @abstractmethod
    def make_engine(self) -> Engine:
        """A fresh one, not started; called within a running loop."""

    @asynccontextmanager
    async def running(self) -> AsyncIterator[tuple[Engine, EngineInfo]]:
        engine = self.make_engine()
        try:
            async with asyncio.timeout(_SECONDS):
                info = await engine.start()
            yield engine, info
        finally:
            async with asyncio.timeout(_SECONDS):
                await engine.stop()

    def request(self, id: str = "a", max_tokens: int = 8, **values: Any) -> EngineRequest:
        return EngineRequest(
            id=id, token_ids=list(self.prompt), stop=StopConditions(max_tokens=max_tokens, ignore_eos=True), **values
        )

    async def collected(self, engine: Engine, request: EngineRequest, context: Context | None = None) -> list[EngineChunk]:
        async with asyncio.timeout(_SECONDS):
            return [chunk async for chunk in engine.generate(request, context or Context())]

    async def _once_free(self, engine: Engine, request: EngineRequest) -> list[EngineChunk]:
        async with asyncio.timeout(_SECONDS):
            while True:
                try:
                    return await self.collected(engine, request)
                except DynamoError:
                    await asyncio.sleep(_STEP_SECONDS)

    # --- tests ---------------------------------------------------------------------------------------------------------------

    async def test_it_is_an_engine_that_says_what_it_knows(self) -> None:
        async with self.running() as (engine, info):
            assert isinstance(engine, Engine)
            assert isinstance(info, EngineInfo)
            assert info.context_length >= 0
            assert not info.kv_events or info.block_size > 0, "KV events need a block size"

    async def test_a_stream_ends_with_one_finish_reason_and_keeps_to_max_tokens(self) -> None:
        async with self.running() as (engine, _):
            chunks = await self.collected(engine, self.request(max_tokens=5))
            reasons = [chunk.finish_reason for chunk in chunks]
            assert reasons[-1] in {"length", "stop"}, f"the last chunk says {reasons[-1]}"
            assert not any(reasons[:-1]), "only the last chunk has a finish reason"
            tokens = [token for chunk in chunks for token in chunk.token_ids]
            assert len(tokens) <= 5
            assert reasons[-1] != "length" or len(tokens) == 5, "length means that max_tokens were generated"

    async def test_streams_run_side_by_side_and_do_not_mix(self) -> None:
        async with self.running() as (engine, _):
            alone = await self.collected(engine, self.request("alone"))
            together = await asyncio.gather(*(self.collected(engine, self.request(f"r{number}")) for number in range(4)))
            lengths = {sum(len(chunk.token_ids) for chunk in chunks) for chunks in (alone, *together)}
            assert len(lengths) == 1, "equal requests give streams of equal length, alone or not"

    async def test_a_stopped_context_ends_the_stream_soon(self) -> None:
        async with self.running() as (engine, _):
            context = Context()
            stream = engine.generate(self.request(max_tokens=self.endless), context)
            chunks: list[EngineChunk] = []
            async with asyncio.timeout(_SECONDS):
                async for chunk in stream:
                    chunks.append(chunk)
                    if chunk.token_ids:
                        context.stop_generating()
            assert chunks[-1].finish_reason == "cancelled"
            assert sum(len(chunk.token_ids) for chunk in chunks) < self.endless

    async def test_a_closed_stream_frees_its_place(self) -> None:
        async with self.running() as (engine, _):
            stream: Any = engine.generate(self.request("same", self.endless), Context())
            async with asyncio.timeout(_SECONDS):
                async for chunk in stream:
                    if chunk.token_ids:
                        break
                await stream.aclose()
            chunks = await self._once_free(engine, self.request("same"))
            assert chunks[-1].finish_reason in {"length", "stop"}, "the id of a closed stream can be used again a step later"

    async def test_a_step_engine_says_the_same_through_its_sink(self) -> None:
        async with self.running() as (engine, _):
            if not isinstance(engine, StepEngine):
                return
            sink = _Sink()
            engine.submit(self.request(), sink, Context())
            async with asyncio.timeout(_SECONDS):
                await sink.done.wait()
            assert sink.last is not None
            assert sink.last.finish_reason in {"length", "stop"}
            assert len(sink.tokens) <= 8
            assert not sink.late, "nothing follows the finish reason"

    async def test_a_step_engine_ends_a_cancelled_sequence(self) -> None:
        async with self.running() as (engine, _):
            if not isinstance(engine, StepEngine):
                return
            sink, context = _Sink(), Context()
            engine.submit(self.request(max_tokens=self.endless), sink, context)
            async with asyncio.timeout(_SECONDS):
                await sink.some.wait()
                context.kill()
                await sink.done.wait()
            assert sink.last is not None
            assert sink.last.finish_reason == "cancelled"

    async def test_load_and_health_payload_are_what_the_contract_says(self) -> None:
        async with self.running() as (engine, _):
            load = getattr(engine, "load", None)
            if load is not None:
                reading = load()
                assert min(reading.running, reading.waiting, reading.kv_used_blocks) >= 0
            payload = getattr(engine, "health_payload", None)
            if payload is not None:
                assert (await self.collected(engine, payload()))[-1].finish_reason is not None

    async def test_stopping_with_running_streams_and_twice_is_no_error(self) -> None:
        async with self.running() as (engine, _):
            stream: Any = engine.generate(self.request(max_tokens=self.endless), Context())
            async with asyncio.timeout(_SECONDS):
                await anext(stream)
                await engine.stop()
            with suppress(DynamoError):
                await stream.aclose()
