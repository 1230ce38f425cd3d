"""A pipeline on an event loop of its own, for a thread that reads a keyboard."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager
from typing import Any

from dynamo_core.launcher.answer import Answer, Message, OnText
from dynamo_core.launcher.pipeline import Pipeline

__all__ = ["BackgroundPipeline"]


class BackgroundPipeline:
    """A :class:`~dynamo_core.launcher.answer.Responder`. The constructor returns when a model is ready, or raises why not."""

    def __init__(self, pipeline: AbstractAsyncContextManager[Pipeline], model: str | None, *, within: float = 60.0) -> None:
        self._ready: Future[str] = Future()
        self._loop = asyncio.new_event_loop()
        self._task: asyncio.Task[None] | None = None
        self._pipeline: Pipeline
        self._thread = threading.Thread(target=self._run, args=(pipeline, model, within), name="pipeline", daemon=True)
        self._thread.start()
        try:
            self.model = self._ready.result()
        except BaseException:
            self.close()
            raise

    def models(self) -> Sequence[str]:
        return self._pipeline.names()

    def ask(self, messages: Sequence[Message], options: Mapping[str, Any], on_text: OnText) -> Answer:
        pieces: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        fields = {**options, "model": self.model, "messages": list(messages)}
        asked = asyncio.run_coroutine_threadsafe(self._pipeline.ask(fields, pieces.put), self._loop)
        asked.add_done_callback(lambda _: pieces.put(None))
        try:
            while (piece := pieces.get()) is not None:
                on_text(piece)
        except KeyboardInterrupt:
            asked.cancel()
            raise
        return asked.result()

    def close(self) -> None:
        if self._thread.is_alive():
            with contextlib.suppress(RuntimeError):  # the loop was closed in this very moment
                self._loop.call_soon_threadsafe(self._end)
            self._thread.join()

    def _end(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def _run(self, pipeline: AbstractAsyncContextManager[Pipeline], model: str | None, within: float) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            try:
                runner.run(self._serve(pipeline, model, within))
            except asyncio.CancelledError:
                self._ready.cancel()
            except Exception as error:  # noqa: BLE001 - raised in the thread that waits
                if not self._ready.done():
                    self._ready.set_exception(error)

    async def _serve(self, pipeline: AbstractAsyncContextManager[Pipeline], model: str | None, within: float) -> None:
        self._task = asyncio.current_task()
        async with pipeline as self._pipeline:
            self._ready.set_result(await self._pipeline.ready(model, within))
            await asyncio.Event().wait()
