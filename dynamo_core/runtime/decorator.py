"""``dynamo_worker`` and ``dynamo_endpoint``, as code written for Dynamo uses them."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

from dynamo_core.contracts.context import Context
from dynamo_core.runtime.canary import CanarySettings
from dynamo_core.runtime.distributed import DistributedRuntime
from dynamo_core.runtime.typed import parse_request, plain_response

if TYPE_CHECKING:
    from dynamo_core.config import Settings

__all__ = ["dynamo_endpoint", "dynamo_worker", "runtime_of", "system_of", "tell_ignored"]

_log = logging.getLogger(__name__)

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

            resolved = resolve({})
            async with runtime_of(resolved.settings, resolved.plugin_tables, resolved.file or "dynamo.toml") as runtime:
                return await _until_signal(runtime, asyncio.ensure_future(worker(runtime, *args, **kwargs)))

        return run

    return decorate


def runtime_of(
    settings: Settings, tables: Mapping[str, Mapping[str, Any]] | None = None, source: str = "dynamo.toml"
) -> DistributedRuntime:
    """A runtime as the settings say. ``tables`` configure the plugins of its store and its planes; ``source`` is the file of
    these tables, for sentences about it."""
    from dynamo_core.plugins import activate

    tell_ignored(settings)
    parts = dict.fromkeys((settings.discovery_backend, settings.request_plane, settings.event_plane))
    compiled = activate(tuple(parts), tables=tables or {}, source=source)
    return DistributedRuntime(
        None,
        settings.discovery_backend,
        settings.request_plane,
        event_plane=settings.event_plane,
        namespace=settings.namespace,
        run_dir=settings.run_dir,
        compiled=compiled,
        file_kv=settings.file_kv,
        grace=settings.graceful_shutdown_secs,
        blocking_threads=settings.runtime_max_blocking_threads,
        system=system_of(settings),
        canary=CanarySettings(
            enabled=settings.health_check_enabled,
            wait=settings.canary_wait_secs,
            timeout=settings.health_check_timeout_secs,
        ),
    )


def tell_ignored(settings: Settings) -> None:
    """Log which settings of the environment have no effect here."""
    if settings.runtime_num_worker_threads is not None:
        _log.warning(
            "DYN_RUNTIME_NUM_WORKER_THREADS=%d has no effect: a process has one event loop; start more processes",
            settings.runtime_num_worker_threads,
        )


def system_of(settings: Settings) -> tuple[str, int] | None:
    """Where the status server listens; ``None``: there is none."""
    return None if settings.system_port < 0 else (settings.system_host, settings.system_port)


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
