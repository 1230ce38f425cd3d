"""Handlers that are generators or functions, on a request plane."""

from __future__ import annotations

import asyncio
import inspect
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Executor
from typing import Any, Protocol

from dynamo_core.contracts.context import Context
from dynamo_core.contracts.planes import ResponseSink
from dynamo_core.errors import Cancelled, DeadlineExceeded, DynamoError, EngineError, EngineShutdown
from dynamo_core.runtime.metrics import EndpointMetrics

__all__ = ["GeneratorHandler", "PayloadAdapter"]

_log = logging.getLogger(__name__)

_KILL_GRACE_SECONDS = 0.5


class PayloadAdapter(Protocol):
    """Stands between an endpoint's wire form and its handler."""

    def request(self, request: Any) -> Any: ...

    def item(self, item: Any) -> Any: ...


class GeneratorHandler:
    """A request handler that runs ``function(request[, context])`` in one task a request and owns those tasks.

    ``function`` is an async generator function, a coroutine function (its result is the only item) or a plain function or
    generator function, which may block: it runs in ``threads()``. A killed request's task is cancelled, half a second later if
    the function takes the context and so can end by itself; one whose deadline passes is ended with ``DeadlineExceeded``; a
    stopped one ends when the function looks at its context.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        endpoint: str,
        *,
        metrics: EndpointMetrics | None = None,
        adapter: Callable[[], PayloadAdapter | None] = lambda: None,
        threads: Callable[[], Executor | None] = lambda: None,
    ) -> None:
        self._function = function
        self._endpoint = endpoint
        self._metrics = metrics or EndpointMetrics(endpoint)
        self._adapter = adapter
        self._threads = threads
        self._context_as = _takes_context(function)
        self._blocking = _may_block(function)
        self._closing = False
        self._tasks: set[asyncio.Task[None]] = set()

    def __call__(self, request: Any, context: Context, sink: ResponseSink) -> None:
        task = asyncio.create_task(self._run(request, context, sink))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

        def cancelled(killed: bool) -> None:
            if killed and self._context_as is None:
                task.cancel()
            elif killed:  # it may want to say goodbye in its own way
                timer = asyncio.get_running_loop().call_later(_KILL_GRACE_SECONDS, task.cancel)
                task.add_done_callback(lambda _: timer.cancel())

        context.on_cancel(cancelled)

    async def close(self) -> None:
        """Cancel what still runs; its clients are told to go elsewhere."""
        self._closing = True
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, request: Any, context: Context, sink: ResponseSink) -> None:
        began = self._metrics.began()
        error: DynamoError | None = None
        limit = asyncio.timeout(None if context.deadline is None else max(0.0, context.deadline - time.time()))
        try:
            async with limit:
                error = await self._outcome(request, context, sink)
        except TimeoutError:
            error = DeadlineExceeded(f"the handler of {self._endpoint} did not finish before the request's deadline")
        self._metrics.ended(began, type(error).__name__ if error is not None else None)
        context.end_spans()
        if error is None:
            sink.end()
        else:
            sink.error(error)
        if limit.expired():
            context.kill()  # and with it what the handler asked of others

    async def _outcome(self, request: Any, context: Context, sink: ResponseSink) -> DynamoError | None:
        try:
            await self._answer(request, context, sink)
        except asyncio.CancelledError:
            # Raised by the function when it was asked to stop, it is the ordinary end of the stream.
            if context.is_stopped():
                return None
            if self._closing:
                return EngineShutdown(f"a server of {self._endpoint} shut down")
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise  # the deadline
            return Cancelled(f"the handler of {self._endpoint} was cancelled")
        except DynamoError as error:
            return error
        except Exception as error:  # noqa: BLE001  # a handler's bug is that request's failure
            _log.exception("the handler of %s failed; request %s", self._endpoint, context.id())
            return EngineError(f"the handler of {self._endpoint} raised {type(error).__name__}: {error}")
        return None

    async def _answer(self, request: Any, context: Context, sink: ResponseSink) -> None:
        adapter = self._adapter()
        item = sink.item
        if adapter is not None:
            request = adapter.request(request)
            convert, put = adapter.item, sink.item

            def item(value: Any) -> None:
                put(convert(value))

        result = await self._called(request, context)
        if inspect.isawaitable(result):
            result = await result
        if inspect.isgenerator(result):
            result = _stepped(result, self._threads())
        if hasattr(result, "__aiter__"):
            await _forward(result, item, sink)
        else:
            item(result)

    async def _called(self, request: Any, context: Context) -> Any:
        arguments: tuple[Any, ...] = (request, context) if self._context_as == "positional" else (request,)
        named = {"context": context} if self._context_as == "keyword" else {}
        if self._blocking:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._threads(), lambda: self._function(*arguments, **named))
        return self._function(*arguments, **named)


async def _forward(stream: Any, item: Callable[[Any], None], sink: ResponseSink) -> None:
    try:
        async for value in stream:
            item(value)
            await sink.ready()
    finally:
        close = getattr(stream, "aclose", None)
        if close is not None:
            await close()


async def _stepped(generator: Iterator[Any], threads: Executor | None) -> AsyncIterator[Any]:
    """The items of a generator that may block between them."""
    loop = asyncio.get_running_loop()
    end = object()
    while (item := await loop.run_in_executor(threads, next, generator, end)) is not end:
        yield item


def _may_block(function: Callable[..., Any]) -> bool:
    """Only what is known to be a plain function: a callable object or a partial may well be asynchronous."""
    plain = inspect.isfunction(function) or inspect.ismethod(function)
    asynchronous = inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)
    return plain and not asynchronous


def _takes_context(function: Callable[..., Any]) -> str | None:
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return None
    positional = [p for p in parameters.values() if p.kind in {p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD}]
    # A second parameter with a default of its own is the handler's business, unless it is called context.
    second = positional[1:2]
    if any(p.default is p.empty or p.name == "context" for p in second):
        return "positional"
    named = parameters.get("context")
    if named is not None and named.kind is named.KEYWORD_ONLY:
        return "keyword"
    return "positional" if any(p.kind is p.VAR_POSITIONAL for p in parameters.values()) else None
