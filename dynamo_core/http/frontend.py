"""A frontend process: runtime, models and HTTP, from start to SIGTERM."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

from litestar import Litestar

from dynamo_core.config import Settings, choose_router
from dynamo_core.errors import StartupError
from dynamo_core.http.admin import Health, Peers
from dynamo_core.http.app import create_app
from dynamo_core.http.model_series import ModelCollector
from dynamo_core.http.observe import FrontendMetrics
from dynamo_core.http.server import HttpServer
from dynamo_core.http.switch import AppSwitch, Generation
from dynamo_core.http.tls import check_tls
from dynamo_core.plugins import Compiled, LoopWatchdog
from dynamo_core.runtime import DistributedRuntime
from dynamo_core.runtime.exposition import render
from dynamo_core.runtime.garbage import spare_the_long_lived
from dynamo_core.runtime.heap import keep_heap_small, use_large_pages
from dynamo_core.runtime.process import process_runtime
from dynamo_core.runtime.signals import stop_on_signal
from dynamo_core.runtime.stores import StoreCollector
from dynamo_core.serving.manager import ModelManager

__all__ = ["Beside", "Frontend", "run_frontend"]

_log = logging.getLogger(__name__)

Beside = Callable[[DistributedRuntime], AbstractAsyncContextManager[object]]


class Frontend:
    """One frontend that serves. ``manager`` may be read; :meth:`reload` replaces the plugins."""

    def __init__(
        self, manager: ModelManager, settings: Settings, compiled: Compiled, health: Health, peers: Peers | None = None
    ) -> None:
        self.manager = manager
        self._settings = settings
        self._compiled = compiled
        self._watchdog = compiled.watchdog()
        self._health = health
        self._peers = peers
        self._metrics = FrontendMetrics(settings.metrics_prefix)
        self._switch = AppSwitch(self._application(compiled))
        self._metrics.registry.register(
            ModelCollector(settings.metrics_prefix, manager.models, self._metrics.faults, settings.migration_limit)
        )
        self._metrics.registry.register(StoreCollector(settings.metrics_prefix, health.stores))
        self._retiring: set[asyncio.Task[None]] = set()

    @property
    def watchdog(self) -> LoopWatchdog:
        """Of the active plugins; to be entered for as long as the frontend serves."""
        return self._watchdog

    @property
    def application(self) -> AppSwitch:
        return self._switch

    def metrics_text(self) -> str:
        """This frontend's own series as Prometheus text."""
        return render(self._metrics.registry.collect()).body.decode()

    async def reload(self, compiled: Compiled) -> None:
        """Serve with these plugins from here on. Requests that run end with the plugins they began with; then plugins that are no
        longer active are shut down. Raises :class:`StartupError`, and nothing has changed then.
        """
        await compiled.lifecycle.succeed(self._compiled.lifecycle, "frontend")
        try:
            app = self._application(compiled)
        except Exception as error:
            await self._compiled.lifecycle.succeed(compiled.lifecycle, "frontend")
            await compiled.shutdown("frontend")
            if isinstance(error, StartupError):
                raise
            raise StartupError(f"The plugins' routes and middleware make no application ({error}): correct them.") from error
        earlier, self._compiled = self._compiled, compiled
        self.manager.recompiled(compiled)
        self._watchdog.know(compiled.plugins)
        task = asyncio.create_task(self._retire(self._switch.swap(app), earlier), name="retire plugins")
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)

    async def close(self) -> None:
        """Shut down all plugins, those of a reload that still drain as well."""
        for task in self._retiring:
            task.cancel()
        await asyncio.gather(*self._retiring, return_exceptions=True)
        await self._compiled.shutdown("frontend")

    def _application(self, compiled: Compiled) -> Litestar:
        return create_app(
            self.manager, compiled, self._settings, self._metrics, health=self._health, direct=True, peers=self._peers
        )

    async def _retire(self, generation: Generation, compiled: Compiled) -> None:
        try:
            if not await generation.idle(self._settings.graceful_shutdown_secs):
                _log.warning("%d requests still run with the plugins from before the reload", generation.running)
        finally:
            await compiled.shutdown("frontend")


async def run_frontend(
    settings: Settings,
    compiled: Compiled,
    *,
    name: str,
    sock: socket.socket,
    on_ready: Callable[[Frontend], None] | None = None,
    stop: asyncio.Event | None = None,
    beside: Beside | None = None,
    peers: Peers | None = None,
) -> int:
    """Serve until SIGTERM or SIGINT, or until ``stop`` is set where the signals are somebody else's. Returns the exit code.

    ``on_ready`` is called when connections are accepted; models may still be loading. ``beside`` is entered with the runtime
    before the first request and left after the last: a worker in the same process. ``peers`` tells the metrics of all frontends
    of a run. Running requests get ``graceful_shutdown_secs``. Raises :class:`~dynamo_core.errors.StartupError`.
    """
    on_settled: list[Callable[[], object]] = []
    if stop is None:  # the process is this frontend's
        stop = stop_on_signal()
        spare_the_long_lived()
        keep_heap_small()
        on_settled.append(use_large_pages)
    router = compiled.router(choose_router(settings, compiled))
    check_tls(settings)
    runtime = process_runtime(settings, compiled, status_server=False)
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(sock.close)
        stack.push_async_callback(runtime.shutdown)
        await runtime.start()
        stack.push_async_callback(compiled.shutdown, "frontend")
        await compiled.startup("frontend")
        if beside is not None:
            await stack.enter_async_context(beside(runtime))
        manager = ModelManager(runtime, compiled, router, settings)
        manager.on_settled += on_settled
        stack.push_async_callback(manager.stop)
        await manager.start()
        health = Health(manager, runtime.stores)
        frontend = Frontend(manager, settings, compiled, health, peers)
        stack.push_async_callback(frontend.close)
        server = _server(frontend, sock, settings)
        stack.push_async_callback(server.stop)
        await server.start()
        stack.enter_context(frontend.watchdog)
        _log.info("%s listens on port %d, router %s", name, server.port, router.spec.name)
        if on_ready is not None:
            on_ready(frontend)
        await _until_over(server, stop)
        health.draining = True
    return 0


def _server(frontend: Frontend, sock: socket.socket, settings: Settings) -> HttpServer:
    cert, key = settings.tls_cert_path, settings.tls_key_path
    tls = (cert, key) if cert is not None and key is not None else None
    return HttpServer(frontend.application, sock, grace=settings.graceful_shutdown_secs, backlog=settings.http_backlog, tls=tls)


async def _until_over(server: HttpServer, stop: asyncio.Event) -> None:
    stopping, ending = asyncio.create_task(stop.wait()), asyncio.create_task(server.wait())
    await asyncio.wait((stopping, ending), return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    ending.cancel()
    await asyncio.gather(stopping, ending, return_exceptions=True)
