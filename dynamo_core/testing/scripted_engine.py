"""An engine that does what a test says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from dynamo_core.contracts import Context, EngineChunk, EngineContext, EngineInfo, EngineRequest
from dynamo_core.plugins import Provider
from dynamo_core.specs import EngineSpec

__all__ = ["ScriptedEngine", "engine_context", "next_token", "scripted_engine"]

VOCABULARY = 200


def next_token(tokens: Sequence[int]) -> int:
    """A token that follows from all before it: a stream that drops or repeats one shows it in everything after."""
    return (tokens[-1] * 31 + len(tokens) * 7 + 3) % VOCABULARY


def engine_context(**values: Any) -> EngineContext:
    """For factories: every field has a value, those given come first."""
    return EngineContext(**{"model_path": "", "model_name": "scripted", "worker_id": 1, **values})


class ScriptedEngine:
    """Generates :func:`next_token` until ``max_tokens`` while its ``gate`` is open; ``fails`` is raised in place of a token."""

    def __init__(self, context: EngineContext, *, info: EngineInfo | None = None) -> None:
        self.context = context
        self.info = info or EngineInfo(context_length=4096)
        self.gate = asyncio.Event()
        """Set: tokens come at once. Cleared: streams wait before their next token."""
        self.gate.set()
        self.fails: Exception | None = None
        self.fail_at = 0
        self.requests: list[EngineRequest] = []
        self.running = 0
        self.cancelled = 0
        self.started = False

    async def start(self) -> EngineInfo:
        self.started = True
        return self.info

    async def generate(self, request: EngineRequest, context: Context) -> AsyncIterator[EngineChunk]:
        self.requests.append(request)
        self.running += 1
        try:
            async for chunk in self._tokens(request, context):
                yield chunk
        finally:
            self.running -= 1

    async def stop(self) -> None:
        self.started = False

    async def _tokens(self, request: EngineRequest, context: Context) -> AsyncIterator[EngineChunk]:
        tokens = list(request.token_ids)
        limit = request.stop.max_tokens
        for number in range(limit):
            await self._may_go_on(context)
            if context.is_stopped():
                self.cancelled += 1
                yield EngineChunk(finish_reason="cancelled")
                return
            if self.fails is not None and number == self.fail_at:
                raise self.fails
            tokens.append(next_token(tokens))
            yield EngineChunk((tokens[-1],), finish_reason="length" if number + 1 == limit else None)

    async def _may_go_on(self, context: Context) -> None:
        if self.gate.is_set():
            await asyncio.sleep(0)
            return
        opened = asyncio.create_task(self.gate.wait())
        try:
            await asyncio.wait((opened, context.async_killed_or_stopped()), return_when=asyncio.FIRST_COMPLETED)
        finally:
            opened.cancel()


def scripted_engine(made: Callable[[ScriptedEngine], None] = lambda _: None, **spec: Any) -> Provider:
    """A provider for ``EngineWorker``; ``made`` gets each engine that it makes."""

    def factory(_config: Any, context: EngineContext) -> ScriptedEngine:
        engine = ScriptedEngine(context)
        made(engine)
        return engine

    return Provider(EngineSpec(**{"name": "scripted", "factory": factory, "needs_model": False, **spec}), "scripted")
