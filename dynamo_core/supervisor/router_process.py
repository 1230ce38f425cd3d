"""What ``dynamo router`` runs: a router in a process of its own."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

import uvloop

from dynamo_core.config import Resolved, choose_router
from dynamo_core.runtime.signals import stop_on_signal
from dynamo_core.supervisor.preflight import activate_for

__all__ = ["run_router"]


def run_router(resolved: Resolved, *, endpoint: str, component: str, tell: Callable[[str], None]) -> int:
    """Until SIGTERM or SIGINT; returns the exit code. ``tell`` gets a line once it serves. Raises :class:`StartupError`."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_serve(resolved, endpoint, component, tell))


async def _serve(resolved: Resolved, endpoint: str, component: str, tell: Callable[[str], None]) -> int:
    from dynamo_core.llm.router_service import RouterService
    from dynamo_core.runtime.process import process_runtime
    from dynamo_core.serving.session_affinity import SessionAffinity

    settings = resolved.settings
    stop = stop_on_signal()
    compiled = activate_for(resolved, "frontend")
    provider = compiled.router(choose_router(settings, compiled))
    runtime = process_runtime(settings, compiled)
    ttl = settings.router_session_affinity_ttl_secs
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(runtime.shutdown)
        await runtime.start()
        stack.push_async_callback(compiled.shutdown, "frontend")
        await compiled.startup("frontend")
        service = RouterService(
            runtime,
            provider,
            compiled.faults,
            endpoint=endpoint,
            component=component,
            block_size=settings.kv_cache_block_size,
            migration_limit=settings.migration_limit,
            sessions=None if ttl is None else SessionAffinity(ttl, settings.router_session_affinity_mode),
        )
        stack.push_async_callback(service.stop)
        await service.start()
        stack.enter_context(compiled.watchdog())
        tell(f"ready: dyn://{component} routes for dyn://{endpoint}, router {provider.spec.name}")
        await stop.wait()
    return 0
