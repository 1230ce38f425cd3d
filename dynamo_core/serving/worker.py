"""One engine, served: the heart of a worker process."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import PurePath
from typing import Any

from dynamo_core.config import Settings
from dynamo_core.contracts import (
    Context,
    Engine,
    EngineContext,
    EngineInfo,
    EngineLoad,
    ModelCard,
    ResponseSink,
)
from dynamo_core.errors import EngineError, EngineShutdown, PluginError, StartupError
from dynamo_core.plugins import Provider
from dynamo_core.runtime import CanarySettings, DistributedRuntime, Served
from dynamo_core.serving.engine_handler import EngineHandler
from dynamo_core.serving.kv_journal import journal_of
from dynamo_core.serving.model_folder import ModelFolder
from dynamo_core.serving.wire import LOAD_TOPIC, LoadReading, ModelKey, encode_card, encode_event, encode_request
from dynamo_core.serving.worker_controls import add_controls

__all__ = ["EngineWorker"]

_log = logging.getLogger(__name__)

_LOAD_SECONDS = 0.5
_IDLE_SECONDS = 0.02
_CLOSE_SECONDS = 1.0
"""For what was abandoned to reach its clients."""


class EngineWorker:
    """Starts an engine, serves it on ``namespace.component.endpoint`` and publishes its card, events and load.

    ``fatal`` is done, with a sentence, when the engine has died: the process should exit and be started anew.
    """

    def __init__(
        self,
        runtime: DistributedRuntime,
        provider: Provider,
        settings: Settings,
        *,
        name: str = "worker",
        cpu_cores: Sequence[int] = (),
        endpoint: str = "generate",
    ) -> None:
        self.name = name
        self.asleep = False
        self.card: ModelCard | None = None
        """Set once started."""
        self.fatal: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._runtime = runtime
        self._provider = provider
        self._settings = settings
        self._cpu_cores = tuple(cpu_cores)
        self._key = ModelKey(settings.namespace, settings.component, endpoint, runtime.instance_id)
        self._engine: Engine | None = None
        self._handler: EngineHandler | None = None
        self._served: list[Served] = []
        self._load_task: asyncio.Task[None] | None = None
        self._read_load: Callable[[], EngineLoad] | None = None
        self._journal = journal_of(runtime, f"{settings.namespace}.{settings.component}")
        self._drained = False
        self._run_dir = ""

    @property
    def running(self) -> int:
        """Requests in the engine."""
        return 0 if self._handler is None else self._handler.running

    def load(self) -> EngineLoad:
        """The engine's own reading, or the number of requests when it has none."""
        if self._read_load is not None:
            try:
                return self._read_load()
            except Exception as error:  # noqa: BLE001  # a reading is not worth a worker
                self._read_load = None
                _log.error("%s: the engine cannot tell its load; counting requests instead", self.name, exc_info=error)
        return EngineLoad(running=self.running)

    async def start(self) -> ModelCard:
        """Returns when clients can find the worker.

        Raises :class:`~dynamo_core.errors.StartupError`; call ``stop`` all the same.
        """
        settings = self._settings
        if not settings.model:
            raise StartupError(
                "No model is named: add --model PATH, a folder with a tokenizer.json and, for most engines, weights."
            )
        folder = await asyncio.to_thread(ModelFolder.load, settings.model)
        await self._runtime.start()
        name = settings.model_name or PurePath(folder.path).name or str(folder.path)
        info = await self._start_engine(name)
        card = self._make_card(name, folder, info)
        assert self._engine is not None  # noqa: S101 - for the type checker
        self._read_load = getattr(self._engine, "load", None)
        self._handler = EngineHandler(self._engine)
        endpoint = f"{settings.namespace}.{settings.component}"
        runtime = self._runtime
        if card.kv_events:
            self._served.append(await self._journal.serve(runtime, endpoint))
        self._served.insert(
            0,
            await runtime.endpoint(self._key.path).serve(
                self._handler,
                events=True,
                health_check_payload=self._health_payload(),
                canary=CanarySettings(
                    enabled=settings.health_check_enabled,
                    wait=settings.canary_wait_secs,
                    timeout=settings.health_check_timeout_secs,
                ),
            ),
        )
        if hasattr(self._engine, "metrics"):
            self._served.append(await runtime.endpoint(f"{endpoint}.metrics").serve(self._serve_metrics))
        add_controls(runtime, self, getattr(self._engine, "metrics", None))
        await runtime.discovery.put(str(self._key), encode_card(card))
        self.card = card
        self._load_task = asyncio.create_task(self._publish_load(), name=f"load of {self.name}")
        return card

    async def sleep(self) -> None:
        """Leave discovery, so that no router chooses this worker, let what runs finish within the grace time and move the rest;
        an engine that can (``async def sleep``) then frees what it does not need. Until :meth:`wake`."""
        self.asleep = True
        for served in self._served:
            await served.suspend("asleep")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._settings.graceful_shutdown_secs):
                while self.running:  # noqa: ASYNC110  # rare, and no event is worth its cost to every request
                    await asyncio.sleep(_IDLE_SECONDS)
        if self._handler is not None and self.asleep:
            self._handler.refusal = EngineShutdown("The worker is asleep.")
            self._handler.abandon(EngineShutdown("The worker went to sleep before the request was complete."))
        await self._asked("sleep")

    async def wake(self) -> None:
        """Serve again, once the engine is ready for it."""
        await self._asked("wake")
        self.asleep = False
        if self._handler is not None:
            self._handler.refusal = None
        for served in self._served:
            await served.resume("asleep")

    async def drain(self) -> None:
        """Leave discovery, refuse new work and let what runs finish within the grace time; the rest moves to other workers."""
        if self._drained or self._engine is None:
            return
        self._drained = True
        if self.card is not None:
            with contextlib.suppress(OSError):  # a store that is out of reach forgets us by itself
                await self._runtime.discovery.delete(str(self._key))
        for served in self._served:
            await served.leave()
        await self._finish_running()
        if self._handler is not None and self._handler.running:
            _log.warning("%s: %d requests did not finish in time and leave", self.name, self._handler.running)
            self._handler.abandon(EngineShutdown("The worker shut down before the request was complete."))

    async def _finish_running(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._settings.graceful_shutdown_secs):
                for served in self._served[:1]:
                    await served.close()
                drain = getattr(self._engine, "drain", None)
                if drain is not None:
                    await drain()

    async def stop(self) -> None:
        """Drain, then free everything. Called once, also after a failed start."""
        await self.drain()
        if self._load_task is not None:
            self._load_task.cancel()
            await asyncio.gather(self._load_task, return_exceptions=True)
        if self._handler is not None:
            await self._handler.close()
        for served in self._served:
            await served.close(_CLOSE_SECONDS)
        engine, self._engine = self._engine, None
        if engine is not None:
            await engine.stop()
        if self._run_dir:
            await asyncio.to_thread(shutil.rmtree, self._run_dir, ignore_errors=True)

    # --- start ---------------------------------------------------------------------------------------------------------------

    async def _start_engine(self, model_name: str) -> EngineInfo:
        settings, spec = self._settings, self._provider.spec
        self._run_dir = await asyncio.to_thread(tempfile.mkdtemp, prefix="dynamo-", dir=settings.run_dir)
        args: dict[str, Any] = dict(settings.engine_args)
        if settings.kv_cache_block_size is not None and spec.kv_events:
            args.setdefault("block_size", settings.kv_cache_block_size)
        context = EngineContext(
            model_path=str(settings.model),
            model_name=model_name,
            worker_id=self._runtime.instance_id,
            args=args,
            run_dir=self._run_dir,
            context_length=settings.context_length,
            cpu_cores=self._cpu_cores,
            publish_kv_events=self._journal.publish,
            on_fatal=self._died,
        )
        try:
            engine = self._engine = self._make_engine(context)
            info: EngineInfo = await engine.start()
            return info
        except StartupError:
            raise
        except Exception as error:
            raise StartupError(f"Engine {spec.name} failed to start: {str(error) or type(error).__name__}") from error

    def _make_engine(self, context: EngineContext) -> Engine:
        spec, plugin = self._provider.spec, self._provider.plugin
        try:
            engine: Engine = spec.factory(self._provider.config, context)
        except StartupError:
            raise
        except Exception as error:
            what = f"{type(error).__name__}: {error}"
            raise PluginError(
                f"plugin {plugin!r} cannot make its engine {spec.name!r}: {what}. Correct the plugin or choose another engine."
            ) from error
        return engine

    def _make_card(self, name: str, folder: ModelFolder, info: EngineInfo) -> ModelCard:
        limits = [limit for limit in (info.context_length or folder.context_length, self._settings.context_length) if limit]
        return ModelCard(
            name=name,
            path=str(folder.path),
            engine=self._provider.spec.name,
            context_length=min(limits, default=0),
            block_size=info.block_size,
            total_kv_blocks=info.total_kv_blocks,
            max_num_seqs=info.max_num_seqs,
            max_num_batched_tokens=info.max_num_batched_tokens,
            kv_events=info.kv_events,
            data_parallel_size=info.data_parallel_size,
            resume=info.resume,
            taints=self._settings.taints,
            created=int(time.time()),
            extra=info.extra,
        )

    def _health_payload(self) -> Any:
        """A canary's request, from engines that know one."""
        payload = getattr(self._engine, "health_payload", None)
        return None if payload is None else encode_request(payload())

    async def _asked(self, what: str) -> None:
        method = getattr(self._engine, what, None)
        if method is not None:
            await method()

    # --- what the worker tells -----------------------------------------------------------------------------------------------

    async def _publish_load(self) -> None:
        while True:
            reading = LoadReading(self._runtime.instance_id, self.load(), self._journal.following)
            self._runtime.event_plane.publish(LOAD_TOPIC, encode_event(reading))
            await asyncio.sleep(_LOAD_SECONDS)

    def _serve_metrics(self, request: Any, context: Context, sink: ResponseSink) -> None:
        del request, context
        task = asyncio.get_running_loop().run_in_executor(None, self._engine.metrics)  # type: ignore[union-attr]

        def done(text: asyncio.Future[bytes]) -> None:
            if text.cancelled() or text.exception() is not None:
                _log.error("%s: the engine's metrics failed: %s", self.name, None if text.cancelled() else text.exception())
                sink.error(EngineError("The engine's metrics cannot be read."))
            else:
                sink.item(text.result())
                sink.end()

        task.add_done_callback(done)

    def _died(self, message: str) -> None:
        if self._handler is not None:
            self._handler.abandon(EngineShutdown("The engine died before the request was complete."))  # others may go on with it
        if not self.fatal.done():
            self.fatal.set_result(message)
