"""A frontend process: runtime, models and HTTP, from start to SIGTERM."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable

from dynamo_core.config import Settings, choose_router
from dynamo_core.http.admin import Health
from dynamo_core.http.app import create_app
from dynamo_core.http.observe import FrontendMetrics
from dynamo_core.http.server import HttpServer
from dynamo_core.plugins import Compiled
from dynamo_core.runtime import DistributedRuntime
from dynamo_core.runtime.signals import stop_on_signal
from dynamo_core.serving.manager import ModelManager

__all__ = ["run_frontend"]

_log = logging.getLogger(__name__)


async def run_frontend(
    settings: Settings,
    compiled: Compiled,
    *,
    name: str,
    sock: socket.socket,
    on_ready: Callable[[ModelManager], None] | None = None,
    stop: asyncio.Event | None = None,
) -> int:
    """Serve until SIGTERM or SIGINT, or until ``stop`` is set where the signals are somebody else's. Returns the exit code.

    ``on_ready`` is called when connections are accepted; models may still be loading. Running requests get
    ``graceful_shutdown_secs``. Raises :class:`~dynamo_core.errors.StartupError`.
    """
    stop = stop or stop_on_signal()
    router = compiled.router(choose_router(settings, compiled))
    runtime = DistributedRuntime(
        None,
        settings.discovery_backend,
        settings.request_plane,
        event_plane=settings.event_plane,
        namespace=settings.namespace,
        run_dir=settings.run_dir,
        compiled=compiled,
        file_kv=settings.file_kv,
        grace=settings.graceful_shutdown_secs,
    )
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(sock.close)
        stack.push_async_callback(runtime.shutdown)
        await runtime.start()
        stack.push_async_callback(compiled.shutdown, "frontend")
        await compiled.startup("frontend")
        manager = ModelManager(runtime, compiled, router, settings)
        stack.push_async_callback(manager.stop)
        await manager.start()
        health = Health(manager)
        app = create_app(manager, compiled, settings, FrontendMetrics(settings.metrics_prefix), health=health, direct=True)
        server = HttpServer(app, sock, grace=settings.graceful_shutdown_secs, backlog=settings.http_backlog)
        stack.push_async_callback(server.stop)
        await server.start()
        _log.info("%s listens on port %d, router %s", name, server.port, router.spec.name)
        if on_ready is not None:
            on_ready(manager)
        await _until_over(server, stop)
        health.draining = True
    return 0


async def _until_over(server: HttpServer, stop: asyncio.Event) -> None:
    stopping, ending = asyncio.create_task(stop.wait()), asyncio.create_task(server.wait())
    await asyncio.wait((stopping, ending), return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    ending.cancel()
    await asyncio.gather(stopping, ending, return_exceptions=True)
