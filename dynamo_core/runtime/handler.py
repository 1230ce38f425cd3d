"""Async generator handlers on a request plane."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Callable
from typing import Any

from dynamo_core.contracts.context import Context
from dynamo_core.contracts.planes import ResponseSink
from dynamo_core.errors import Cancelled, DynamoError, EngineError, EngineShutdown

__all__ = ["GeneratorHandler"]

_log = logging.getLogger(__name__)


class GeneratorHandler:
    """A request handler that runs ``function(request[, context])`` in one task a request and owns those tasks.

    A killed request's task is cancelled; a stopped one ends when the function looks at its context.
    """

    def __init__(self, function: Callable[..., Any], endpoint: str) -> None:
        self._function = function
        self._endpoint = endpoint
        self._with_context = _takes_context(function)
        self._closing = False
        self._tasks: set[asyncio.Task[None]] = set()

    def __call__(self, request: Any, context: Context, sink: ResponseSink) -> None:
        task = asyncio.create_task(self._run(request, context, sink))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

        def cancelled(killed: bool) -> None:
            if killed:
                task.cancel()

        context.on_cancel(cancelled)

    async def close(self) -> None:
        """Cancel what still runs; its clients are told to go elsewhere."""
        self._closing = True
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, request: Any, context: Context, sink: ResponseSink) -> None:
        try:
            result = self._function(request, context) if self._with_context else self._function(request)
            if inspect.isawaitable(result):
                result = await result
            if hasattr(result, "__aiter__"):
                await _forward(result, sink)
            else:
                sink.item(result)
        except asyncio.CancelledError:
            # Raised by the function when it was asked to stop, it is the ordinary end of the stream.
            if context.is_stopped():
                sink.end()
            elif self._closing:
                sink.error(EngineShutdown(f"a server of {self._endpoint} shut down"))
            else:
                sink.error(Cancelled(f"the handler of {self._endpoint} was cancelled"))
        except DynamoError as error:
            sink.error(error)
        except Exception as error:  # noqa: BLE001  # a handler's bug is that request's failure
            _log.exception("the handler of %s failed; request %s", self._endpoint, context.id())
            sink.error(EngineError(f"the handler of {self._endpoint} raised {type(error).__name__}: {error}"))
        else:
            sink.end()


async def _forward(stream: Any, sink: ResponseSink) -> None:
    try:
        async for item in stream:
            sink.item(item)
            await sink.ready()
    finally:
        close = getattr(stream, "aclose", None)
        if close is not None:
            await close()


def _takes_context(function: Callable[..., Any]) -> bool:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return False
    positional = [p for p in parameters if p.kind in {p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD}]
    # A second parameter with a default of its own is the handler's business, unless it is called context.
    second = positional[1:2]
    return any(p.default is p.empty or p.name == "context" for p in second) or any(p.kind is p.VAR_POSITIONAL for p in parameters)
