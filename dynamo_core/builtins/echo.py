"""Engine ``echo``: answers with the prompt. For trying out frontends and plugins; needs no model weights.

Engine arguments: ``delay_ms`` (default 0), the time between two tokens of a stream.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Annotated, Any

import msgspec

from dynamo_core.contracts import (
    Context,
    EngineChunk,
    EngineContext,
    EngineInfo,
    EngineLoad,
    EngineRequest,
    EngineSink,
    TokenLogprob,
)
from dynamo_core.errors import ConfigError, InvalidRequest
from dynamo_core.hookspecs import hookimpl
from dynamo_core.specs import EngineSpec

__all__ = ["EchoArgs", "EchoEngine", "dynamo_engines"]


class EchoArgs(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    delay_ms: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    """Milliseconds between two tokens of a stream; 0 emits one a turn of the event loop."""


class _Echo(msgspec.Struct, eq=False):
    """One running sequence."""

    request: EngineRequest
    sink: EngineSink
    context: Context
    sent: int = 0


class EchoEngine:
    """Emits one token of every running sequence a step, in the order of the prompt.

    Ends with ``"length"`` at ``max_tokens`` and with ``"stop"`` at the end of the prompt or before a stop token. The model's
    own end-of-sequence ids do not end it: rendered chats are full of them.
    """

    def __init__(self, _config: Any, context: EngineContext) -> None:
        try:
            args = msgspec.convert(dict(context.args), EchoArgs)
        except msgspec.ValidationError as error:
            raise ConfigError(f"Engine echo does not accept its arguments ({error}); it takes delay_ms.") from error
        self._delay = args.delay_ms / 1000
        self._running: dict[str, _Echo] = {}
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> EngineInfo:
        self._task = asyncio.create_task(self._run(), name="echo engine")
        return EngineInfo()

    def submit(self, request: EngineRequest, sink: EngineSink, context: Context) -> None:
        if request.id in self._running:
            raise InvalidRequest(f"Request {request.id!r} is already running on this engine.")
        self._running[request.id] = _Echo(request, sink, context)
        self._wake.set()

    async def generate(self, request: EngineRequest, context: Context) -> AsyncIterator[EngineChunk]:
        queue = _Queue()
        self.submit(request, queue, context)
        try:
            while True:
                chunk = await queue.get()
                yield chunk
                if chunk.finish_reason is not None:
                    return
        finally:
            self._running.pop(request.id, None)

    def load(self) -> EngineLoad:
        return EngineLoad(running=len(self._running))

    async def stop(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            await asyncio.sleep(self._delay)
            for echo in tuple(self._running.values()):
                if _advance(echo):
                    self._running.pop(echo.request.id, None)
            if not self._running:
                self._wake.clear()


class _Queue(asyncio.Queue[EngineChunk]):
    """A sink for those who read chunks; holds at most the request's ``max_tokens``."""

    def token(self, token_id: int) -> None:
        self.put_nowait(EngineChunk((token_id,)))

    def chunk(self, chunk: EngineChunk) -> None:
        self.put_nowait(chunk)


def _advance(echo: _Echo) -> bool:
    """Emit the next token; True when that ends the sequence."""
    request, sink, sent = echo.request, echo.sink, echo.sent
    if echo.context.is_stopped():
        sink.chunk(EngineChunk(finish_reason="cancelled"))
        return True
    if sent >= len(request.token_ids):
        sink.chunk(EngineChunk(finish_reason="stop", cached_tokens=None if sent else 0))
        return True
    token = request.token_ids[sent]
    if token in request.stop.stop_token_ids and sent >= request.stop.min_tokens:
        sink.chunk(EngineChunk(finish_reason="stop", stop_reason=token))
        return True
    echo.sent = sent + 1
    last = echo.sent >= request.stop.max_tokens
    if not last and sent and request.logprobs is None:
        sink.token(token)
        return False
    sink.chunk(
        EngineChunk(
            (token,),
            finish_reason="length" if last else None,
            cached_tokens=None if sent else 0,
            logprobs=None if request.logprobs is None else (_certain(token, request.logprobs),),
        )
    )
    return last


def _certain(token: int, count: int) -> TokenLogprob:
    return TokenLogprob(token, 0.0, ((token, 0.0),) if count else ())


@hookimpl
def dynamo_engines() -> Iterable[EngineSpec]:
    yield EngineSpec(name="echo", factory=EchoEngine, needs_model=False, description="Answers with the prompt; needs no weights.")
