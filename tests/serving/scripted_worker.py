"""An engine whose next token follows from the tokens before it alone, and a worker process around it.

    python scripted_worker.py MODEL_FOLDER FILE_KV RUN_DIR STEP_SECONDS

prints ``ready`` once it serves, and ends on SIGTERM as a worker does.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from typing import Any

from dynamo_core.config import Settings
from dynamo_core.contracts import Context, EngineChunk, EngineContext, EngineInfo, EngineLoad, EngineRequest, EngineSink, KvStored
from dynamo_core.plugins import Provider
from dynamo_core.runtime import DistributedRuntime
from dynamo_core.serving.worker import EngineWorker
from dynamo_core.specs import EngineSpec

LETTERS = 94
"""Tokens of one printable character each, from id 1 on: none vanishes in the text, so that every loss shows."""


def next_token(tokens: list[int]) -> int:
    return 1 + (tokens[-1] * 31 + len(tokens) * 7 + 3) % LETTERS


def expected(prompt: list[int], count: int) -> list[int]:
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(next_token(tokens))
    return tokens[len(prompt) :]


class ScriptedEngine:
    """Arguments: ``step`` (seconds), ``fail_after`` (tokens, then it raises), ``broken_start``."""

    def __init__(self, config: Any, context: EngineContext) -> None:
        self.context = context
        self.step = float(context.args.get("step", 0.0))
        self.running: dict[str, tuple[list[int], int, EngineRequest, EngineSink, Context]] = {}
        self.stopped = False
        self._task: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()

    async def start(self) -> EngineInfo:
        if self.context.args.get("broken_start"):
            raise RuntimeError("no such device")
        self._task = asyncio.create_task(self._run())
        return EngineInfo(context_length=100_000, block_size=4, max_num_seqs=64, kv_events=True)

    def submit(self, request: EngineRequest, sink: EngineSink, context: Context) -> None:
        self.running[request.id] = (list(request.token_ids), len(request.token_ids), request, sink, context)
        self.context.publish_kv_events([KvStored((len(request.token_ids),))])
        self._wake.set()

    async def generate(self, request: EngineRequest, context: Context) -> Any:
        raise NotImplementedError
        yield

    def load(self) -> EngineLoad:
        return EngineLoad(running=len(self.running))

    def metrics(self) -> bytes:
        return b"scripted_running %d\n" % len(self.running)

    async def stop(self) -> None:
        self.stopped = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            await asyncio.sleep(self.step)
            for key in tuple(self.running):
                if self._advance(*self.running[key]):
                    del self.running[key]
            if not self.running:
                self._wake.clear()

    def _advance(self, tokens: list[int], prompt: int, request: EngineRequest, sink: EngineSink, context: Context) -> bool:
        if context.is_stopped():
            sink.chunk(EngineChunk(finish_reason="cancelled"))
            return True
        tokens.append(next_token(tokens))
        made = len(tokens) - prompt
        last = made >= request.stop.max_tokens
        if made == 1 or last:
            sink.chunk(
                EngineChunk(
                    (tokens[-1],), finish_reason="length" if last else None, cached_tokens=prompt // 2 if made == 1 else None
                )
            )
        else:
            sink.token(tokens[-1])
        return last


PROVIDER = Provider(EngineSpec(name="scripted", factory=ScriptedEngine, kv_events=True), "scripted")


async def main(model: str, file_kv: str, run_dir: str, step: str) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    settings = Settings(model=model, model_name="scripted", engine_args={"step": float(step)}, graceful_shutdown_secs=0.2)
    runtime = DistributedRuntime(None, "file", "tcp", event_plane="zmq", run_dir=run_dir, file_kv=file_kv)
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(runtime.shutdown)
        worker = EngineWorker(runtime, PROVIDER, settings)
        stack.push_async_callback(worker.stop)
        await worker.start()
        print("ready", flush=True)
        await stop.wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:5]))
