"""Worker and frontend side in one process, without HTTP."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from dynamo_core.config import Settings, choose_router
from dynamo_core.http.openai.defaults import read_request_template
from dynamo_core.launcher.pipeline import Pipeline
from dynamo_core.plugins import Compiled
from dynamo_core.runtime import DistributedRuntime
from dynamo_core.runtime.process import process_runtime
from dynamo_core.serving.manager import ModelManager
from dynamo_core.serving.worker import EngineWorker

__all__ = ["local_worker", "open_pipeline"]


@contextlib.asynccontextmanager
async def local_worker(runtime: DistributedRuntime, settings: Settings, compiled: Compiled) -> AsyncIterator[EngineWorker]:
    """The engine that the settings name, served on ``runtime`` until the block is left. Raises ``StartupError``."""
    worker = EngineWorker(runtime, compiled.engine(settings.engine or ""), settings, name="worker")
    try:
        await worker.start()
        yield worker
    finally:
        await worker.stop()


@contextlib.asynccontextmanager
async def open_pipeline(settings: Settings, compiled: Compiled) -> AsyncIterator[Pipeline]:
    """With an engine in the settings it runs here; without one, models come from discovery. Raises ``StartupError``."""
    defaults = read_request_template(settings.request_template)
    runtime = process_runtime(settings, compiled, status_server=False)
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(runtime.shutdown)
        await runtime.start()
        stack.push_async_callback(compiled.shutdown, "frontend")
        await compiled.startup("frontend")
        if settings.engine is not None:
            await stack.enter_async_context(local_worker(runtime, settings, compiled))
        manager = ModelManager(runtime, compiled, compiled.router(choose_router(settings, compiled)), settings)
        stack.push_async_callback(manager.stop)
        await manager.start()
        yield Pipeline(manager, defaults)
