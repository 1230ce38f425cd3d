"""Engine streams on the request plane: what a worker's endpoint does with each request."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

from dynamo_core.contracts import Context, Engine, EngineChunk, EngineRequest, ResponseSink, StepEngine
from dynamo_core.errors import DynamoError, EngineError
from dynamo_core.serving.wire import decode_request, encode_chunk

__all__ = ["EngineHandler"]

_log = logging.getLogger(__name__)

_STOP_GRACE = 1.0
"""Seconds that an engine without steps gets to end a stopped stream by itself."""
_FAILED = "The engine failed on this request."
_CANCELLED = EngineChunk(finish_reason="cancelled")


class EngineHandler:
    """A :data:`~dynamo_core.contracts.RequestHandler`.

    A step engine writes straight to the stream; any other engine gets a task a stream.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._submit: Callable[..., None] | None = engine.submit if isinstance(engine, StepEngine) else None
        self.refusal: DynamoError | None = None
        """What requests are told that come all the same; ``None``: they are served."""
        self._running: set[_Stream] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    def __call__(self, item: Any, context: Context, sink: ResponseSink) -> None:
        if self.refusal is not None:
            raise self.refusal
        request = decode_request(item)
        stream = _Stream(request.id, sink, self._running)
        unregister = context.on_cancel(stream.cancelled)
        if context.is_killed():
            return
        stream.on_end = unregister
        self._running.add(stream)
        if self._submit is None:
            self._start_task(request, context, stream)
            return
        try:
            self._submit(request, stream, context)
        except Exception as error:  # noqa: BLE001  # an engine's failure is that request's alone
            stream.failed(error)

    @property
    def running(self) -> int:
        return len(self._running)

    def abandon(self, error: DynamoError) -> None:
        """End every stream with ``error``; what the engine still says about them is dropped."""
        for stream in tuple(self._running):
            stream.fail(error)
        for task in self._tasks:
            task.cancel()

    async def close(self) -> None:
        """Wait for the tasks of abandoned streams."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # --- engines without steps -----------------------------------------------------------------------------------------------

    def _start_task(self, request: EngineRequest, context: Context, stream: _Stream) -> None:
        loop = asyncio.get_running_loop()
        task = loop.create_task(self._generate(request, context, stream))
        self._tasks.add(task)

        def cancel(killed: bool) -> None:
            if killed:
                task.cancel()
            else:
                timer = loop.call_later(_STOP_GRACE, task.cancel)
                task.add_done_callback(lambda _: timer.cancel())

        unregister = context.on_cancel(cancel)

        def done(_: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            unregister()
            stream.cancelled(True)  # a task that never ran has said nothing

        task.add_done_callback(done)

    async def _generate(self, request: EngineRequest, context: Context, stream: _Stream) -> None:
        chunks: AsyncIterator[EngineChunk] | None = None
        try:
            chunks = self._engine.generate(request, context)
            async for chunk in chunks:
                stream.chunk(chunk)
                if chunk.finish_reason is not None:
                    return
                if context.is_stopped():
                    break
                await stream.ready()
            if context.is_stopped():
                stream.chunk(_CANCELLED)
            else:
                stream.failed(RuntimeError("the engine ended the stream without a finish reason"))
        except asyncio.CancelledError:
            stream.chunk(_CANCELLED)
            if not context.is_stopped():
                raise
        except Exception as error:  # noqa: BLE001  # as above
            stream.failed(error)
        finally:
            close = getattr(chunks, "aclose", None)
            if close is not None:
                await close()


class _Stream:
    """The :class:`~dynamo_core.contracts.EngineSink` of one sequence."""

    __slots__ = ("_id", "_running", "_sink", "on_end", "token")

    token: Callable[[int], None]

    def __init__(self, id: str, sink: ResponseSink, running: set[_Stream]) -> None:
        self._id = id
        self._sink = sink
        self._running = running
        self.token = sink.item  # a bare token is an integer on the wire
        self.on_end: Callable[[], None] | None = None

    def chunk(self, chunk: EngineChunk) -> None:
        if chunk.finish_reason is None:
            self._sink.item(encode_chunk(chunk))
        elif self._ended():
            if chunk.finish_reason == "error":
                _log.error("request %s: the engine failed: %s", self._id, chunk.error)
                self._sink.error(EngineError(_FAILED))
            else:
                self._sink.item(encode_chunk(chunk))
                self._sink.end()

    async def ready(self) -> None:
        await self._sink.ready()

    def failed(self, error: Exception) -> None:
        """The engine raised. What it raised on purpose reaches the client, anything else stays in the log."""
        if isinstance(error, DynamoError):
            self.fail(error)
        else:
            _log.error("request %s: the engine failed", self._id, exc_info=error)
            self.fail(EngineError(_FAILED))

    def fail(self, error: DynamoError) -> None:
        if self._ended():
            self._sink.error(error)

    def cancelled(self, killed: bool) -> None:
        """Nobody listens any more: whether the engine says goodbye is its own business."""
        if killed:
            self._ended()

    def _ended(self) -> bool:
        """True the first time."""
        if self not in self._running:
            return False
        self._running.discard(self)
        self.token = _drop
        if self.on_end is not None:
            self.on_end()
        return True


def _drop(_: int) -> None:
    """A token of a stream that is over."""
