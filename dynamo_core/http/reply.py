"""The ASGI response that a generation writes to, streamed or not."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any, Protocol

from litestar.types import Receive, Scope, Send

from dynamo_core.contracts import Context
from dynamo_core.errors import DynamoError, ServiceUnavailable
from dynamo_core.http.exchange import Exchange
from dynamo_core.http.sse import cut_short
from dynamo_core.http.writer import DirectWriter, ReceiveWatch, TaskWriter, Writer
from dynamo_core.serving.output import GenerationRequest, OutputSink
from dynamo_core.serving.record import RequestRecord

__all__ = ["Begin", "EndCallback", "GenerationReply", "PausableGeneration", "SinkFactory"]

_LAST_WORDS_SECONDS = 1.0
"""What a client gets to take the end of its stream when the server does not wait any longer."""

_LAST_STEP_SECONDS = 5.0
"""What an engine that was stopped gets to say how far it came."""

EndCallback = Callable[[DynamoError | None], None]
SinkFactory = Callable[[Writer, RequestRecord, EndCallback], OutputSink]


class PausableGeneration(Protocol):
    def pause(self) -> None: ...

    def resume(self) -> None: ...


class Begin(Protocol):
    """``ServedModel.generate``."""

    def __call__(
        self, request: GenerationRequest, sink: OutputSink, record: RequestRecord, context: Context
    ) -> PausableGeneration: ...


class GenerationReply:
    """Starts the generation when the server is ready for the response, and sees it to its end.

    Its own task sleeps from then on: the sink writes. An error before the response started is raised here, so that it passes
    through Litestar's exception handlers like any other. The client's leaving kills the context, or stops it and waits for what
    the engine says last, where the exchange is patient.
    """

    __slots__ = ("_begin", "_context", "_done", "_exchange", "_make_sink", "_patience", "_record", "_request", "_runs", "begun")

    def __init__(
        self,
        exchange: Exchange,
        record: RequestRecord,
        context: Context,
        begin: Begin,
        request: GenerationRequest,
        make_sink: SinkFactory,
    ) -> None:
        self._exchange = exchange
        self._record = record
        self._context = context
        self._begin = begin
        self._request = request
        self._make_sink = make_sink
        self.begun: Callable[[Any], None] | None = None
        """Called with the generation once it runs."""
        self._done: asyncio.Future[DynamoError | None] = asyncio.get_running_loop().create_future()
        self._runs = False
        self._patience: asyncio.TimerHandle | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        del scope
        if self._exchange.direct:
            watch = ReceiveWatch(self._exchange.receive, self._client_left)
            try:
                await self._run(DirectWriter(self._exchange, self._client_left))
            finally:
                watch.close()
        else:
            task = asyncio.get_running_loop().create_task(self._watch(receive))
            try:
                await self._run(TaskWriter(send))
            finally:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    async def _run(self, writer: Writer) -> None:
        try:
            if not self._done.done():
                self._start(writer)
            await writer.serve(self._done)
        except asyncio.CancelledError:
            await self._shut_down(writer)
            return
        except BaseException:
            self._context.kill()
            raise
        finally:
            if self._patience is not None:
                self._patience.cancel()
            writer.on_pause = writer.on_resume = None  # they close a circle that only the garbage collector would open
        error = self._done.result()
        if error is not None:
            raise error

    async def _watch(self, receive: Receive) -> None:
        """In a task, for middleware that may have wrapped ``receive``."""
        while (await receive())["type"] != "http.disconnect":
            pass
        self._client_left()

    def _start(self, writer: Writer) -> None:
        sink = self._make_sink(writer, self._record, self._end)
        generation = self._begin(self._request, sink, self._record, self._context)
        self._runs = True
        writer.on_pause = generation.pause
        writer.on_resume = generation.resume
        if self.begun is not None:
            self.begun(generation)

    def _end(self, error: DynamoError | None) -> None:
        if not self._done.done():
            self._done.set_result(error)

    def _client_left(self) -> None:
        """Also called after a complete response, when the server says that there is nothing more to receive."""
        if self._done.done() or self._patience is not None:
            return
        self._record.left = True
        self._exchange.status = 499
        if self._runs and self._exchange.patient:
            self._patience = asyncio.get_running_loop().call_later(_LAST_STEP_SECONDS, self._give_up)
            self._context.stop_generating()
        else:
            self._give_up()

    def _give_up(self) -> None:
        if not self._done.done():
            self._context.kill()
            self._record.close(499, "cancelled", "cancelled")
            self._done.set_result(None)

    async def _shut_down(self, writer: Writer) -> None:
        """The server ends before the generation does, and cancels this task: tell the client, and let the task end by that."""
        self._context.kill()
        error = ServiceUnavailable("The server is shutting down.")
        if not writer.started:
            raise error
        if self._record.summary is None:
            self._record.close(error.status, "failed", error.code)
            writer.end(cut_short(error))
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()  # the first was cancelled with the task
        done.set_result(None)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LAST_WORDS_SECONDS):
                await writer.serve(done)
