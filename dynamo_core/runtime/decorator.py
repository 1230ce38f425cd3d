"""``dynamo_worker`` and ``dynamo_endpoint``, as code written for Dynamo uses them."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from dynamo_core.contracts.context import Context
from dynamo_core.runtime.distributed import DistributedRuntime
from dynamo_core.runtime.process import process_runtime, tell_ignored
from dynamo_core.runtime.typed import parse_request, plain_response

__all__ = ["dynamo_endpoint", "dynamo_worker"]

_RETURN_SECONDS = 1.0
"""For a worker to return by itself once its endpoints are gone."""


def dynamo_worker(static: bool = False) -> Callable[[Callable[..., Awaitable[Any]]], Callable[..., Awaitable[Any]]]:
    """Give ``async def worker(runtime, …)`` a runtime made from the settings of the environment and ``dynamo.toml``
    (``DYN_DISCOVERY_BACKEND``, ``DYN_REQUEST_PLANE``, ``DYN_EVENT_PLANE``, ``DYN_NAMESPACE`` …), and shut it down when the worker
    returns. SIGTERM and SIGINT shut it down, too: endpoints finish what runs, and the worker's ``serve_endpoint`` returns;
    a worker that does not return by itself is cancelled. ``static`` means nothing."""
    del static

    def decorate(worker: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        @functools.wraps(worker)
        async def run(*args: Any, **kwargs: Any) -> Any:
            from dynamo_core.config import resolve
            from dynamo_core.plugins import activate

            resolved = resolve({})
            settings = resolved.settings
            tell_ignored(settings)
            parts = dict.fromkeys((settings.discovery_backend, settings.request_plane, settings.event_plane))
            source = resolved.file or "dynamo.toml"
            async with process_runtime(settings, activate(tuple(parts), tables=resolved.plugin_tables, source=source)) as runtime:
                return await _until_signal(runtime, asyncio.ensure_future(worker(runtime, *args, **kwargs)))

        return run

    return decorate


async def _until_signal(runtime: DistributedRuntime, working: asyncio.Future[Any]) -> Any:
    loop = asyncio.get_running_loop()
    signalled = asyncio.Event()
    handled = []
    for number in (signal.SIGTERM, signal.SIGINT):
        with contextlib.suppress(ValueError, RuntimeError, NotImplementedError):  # not the main thread: signals are not ours
            loop.add_signal_handler(number, signalled.set)
            handled.append(number)
    waiting = asyncio.create_task(signalled.wait())
    try:
        await asyncio.wait({working, waiting}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            await runtime.shutdown()
            await asyncio.wait({working}, timeout=_RETURN_SECONDS)
            if not working.done():
                working.cancel()
                await asyncio.wait({working})
            if working.cancelled():
                return None
        return await working
    finally:
        waiting.cancel()
        working.cancel()
        await asyncio.gather(waiting, working, return_exceptions=True)
        for number in handled:
            loop.remove_signal_handler(number)


def dynamo_endpoint(
    request_type: Any, response_type: Any
) -> Callable[[Callable[..., AsyncIterator[Any]]], Callable[..., AsyncIterator[Any]]]:
    """Check the request (the last positional argument, or the one before the context) and every response against pydantic
    models, msgspec structs or dataclasses; other types document. A request comes as text, which is read as JSON, or as a mapping.

    A request that does not fit is a ValueError, to remote clients an InvalidRequest, at the first item; a response that does not
    fit ends the stream with an EngineError.
    """

    def decorate(handler: Callable[..., AsyncIterator[Any]]) -> Callable[..., AsyncIterator[Any]]:
        @functools.wraps(handler)
        async def wrapped(*args: Any, **kwargs: Any) -> AsyncIterator[Any]:
            place = len(args) - (2 if args and isinstance(args[-1], Context) else 1)
            if place >= 0:
                args = (*args[:place], parse_request(request_type, args[place]), *args[place + 1 :])
            stream = handler(*args, **kwargs)
            try:
                async for item in stream:
                    yield plain_response(response_type, item)
            finally:
                close = getattr(stream, "aclose", None)
                if close is not None:
                    await close()

        return wrapped

    return decorate
