"""The whole server in one thread: frontend, worker and a client without sockets of its own, on a clock that can be stopped.

Everything between the client's bytes and the engine's tokens is what production runs: uvicorn's protocol, the application with
access log and metrics, the kv-router, and the request plane through a Unix socket. Only the engine is played: it gives a token to
every stream when it is told to, so that the same work is done in the same order each time.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from uvicorn.lifespan.on import LifespanOn
from uvicorn.server import ServerState

from dynamo_core.config import Settings
from dynamo_core.contracts import Context, EngineChunk, EngineInfo, EngineRequest, EngineSink
from dynamo_core.http.admin import Health
from dynamo_core.http.frontend import Frontend
from dynamo_core.http.protocol import HttpProtocol
from dynamo_core.http.server import server_config
from dynamo_core.plugins import Provider, activate
from dynamo_core.runtime import DistributedRuntime
from dynamo_core.runtime.discovery.mem import MemDiscovery
from dynamo_core.runtime.discovery.table import Table
from dynamo_core.runtime.garbage import spare_the_long_lived
from dynamo_core.runtime.logging import configure_dynamo_logging
from dynamo_core.runtime.planes.inproc import InprocEvents, InprocHub
from dynamo_core.serving.manager import ModelManager
from dynamo_core.serving.worker import EngineWorker
from dynamo_core.specs import EngineSpec, PlaneContext
from dynamo_core.testing.tiny_model import make_tiny_model

__all__ = ["House", "StoppableLoop"]

MODEL = "counted"
_TURNS = 12
"""Turns of the loop that a step needs at most: from the engine through the socket to the client and, at the end, back."""
_TEXT = (
    "Every word that it writes depends on all the words before it, so it remembers what it has read: keys and values, block "
    "after block, for as long as there is room. "
)


class StoppableLoop(asyncio.SelectorEventLoop):
    """Timers are due by ``time()``: with the clock stopped none fires, however slow the machine."""

    stopped_at: float | None = None

    def time(self) -> float:
        return super().time() if self.stopped_at is None else self.stopped_at

    def stop_clock(self) -> None:
        self.stopped_at = self.time()


class _Played:
    """A :class:`~dynamo_core.contracts.StepEngine` without a model."""

    def __init__(self) -> None:
        self._running: list[tuple[EngineSink, int]] = []
        self._step = 0
        self.tokens: list[int] = []

    async def start(self) -> EngineInfo:
        return EngineInfo(context_length=4096, block_size=16, total_kv_blocks=4096, max_num_seqs=256, kv_events=True)

    async def stop(self) -> None: ...

    def generate(self, request: EngineRequest, context: Context) -> AsyncIterator[EngineChunk]:
        raise NotImplementedError

    def submit(self, request: EngineRequest, sink: EngineSink, context: Context) -> None:  # noqa: ARG002
        self._running.append((sink, request.stop.max_tokens))

    def step(self) -> None:
        """A token for each stream; those that have all of theirs end."""
        self._step += 1
        token = self.tokens[self._step % len(self.tokens)]
        left = []
        for sink, wanted in self._running:
            if wanted == 1:
                sink.chunk(EngineChunk((token,), finish_reason="length"))
            else:
                sink.token(token)
                left.append((sink, wanted - 1))
        self._running = left


class _Wire(asyncio.Transport):
    """What the client sees: how much, and the last of it."""

    def __init__(self) -> None:
        super().__init__({"peername": ("127.0.0.1", 1), "sockname": ("127.0.0.1", 2)})
        self.events = 0
        self.answers = 0

    def write(self, data: Any) -> None:
        self.events += data.count(b"data: {")
        self.answers += data.count(b"HTTP/1.1 200")

    def is_closing(self) -> bool:
        return False

    def get_write_buffer_size(self) -> int:
        return 0

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None: ...

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...

    def close(self) -> None: ...


class House:
    """Made by :meth:`open`."""

    def __init__(self, engine: _Played, connect: Callable[[_Wire], HttpProtocol]) -> None:
        self._engine = engine
        self._wires: list[_Wire] = []
        self._links: list[HttpProtocol] = []
        self._connect = connect

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, loop: StoppableLoop) -> AsyncIterator[House]:
        """Everything is loaded and connected, the collector settled and the clock stopped inside."""
        async with contextlib.AsyncExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="count")))
            configure_dynamo_logging("info", stream=io.StringIO())
            settings = Settings(
                model=str(make_tiny_model(folder / "model", weights=False)), model_name=MODEL, run_dir=str(folder)
            )  # fmt: skip
            compiled = activate(["kv-router", "tcp"])
            engine, table, hub = _Played(), Table(), InprocHub()

            async def runtime(number: int) -> DistributedRuntime:
                context = PlaneContext(namespace="dynamo", run_dir=str(folder), instance_id=number)
                events = InprocEvents(context, hub)
                made = DistributedRuntime(
                    None, MemDiscovery(table), "tcp", event_plane=events, run_dir=str(folder), compiled=compiled
                )  # fmt: skip
                made.instance_id = number
                stack.push_async_callback(made.shutdown)
                await made.start()
                return made

            spec = EngineSpec(name="played", factory=lambda _config, _context: engine, needs_model=False)
            worker = EngineWorker(await runtime(1), Provider(spec, "played"), settings)
            stack.push_async_callback(worker.stop)
            await worker.start()
            front = await runtime(2)
            manager = ModelManager(front, compiled, compiled.router("kv-router"), settings)
            stack.push_async_callback(manager.stop)
            await manager.start()
            while not any(model.ready for model in manager.models()):
                await asyncio.sleep(0.01)
            engine.tokens = manager.get(MODEL).tokenizer.encode(_TEXT, add_special_tokens=False)
            frontend = Frontend(manager, settings, compiled, Health(manager, front.stores))
            stack.push_async_callback(frontend.close)
            config = server_config(frontend.application)
            lifespan = LifespanOn(config)
            stack.push_async_callback(lifespan.shutdown)
            await lifespan.startup()
            state = ServerState()

            def connect(wire: _Wire) -> HttpProtocol:
                protocol = HttpProtocol(config, state, lifespan.state)
                protocol.connection_made(wire)
                return protocol

            spare_the_long_lived()
            loop.stop_clock()
            yield cls(engine, connect)
            loop.stopped_at = None

    async def connect(self, count: int) -> None:
        """Keep-alive connections for :meth:`ask`, in place of those before."""
        self._wires = [_Wire() for _ in range(count)]
        self._links = [self._connect(wire) for wire in self._wires]

    def ask(self, words: int, max_tokens: int, *, stream: bool) -> None:
        """One request on every connection."""
        text = (_TEXT * (words // 30 + 1)).split()[:words]
        for number, link in enumerate(self._links):
            body = json.dumps(
                {
                    "model": MODEL, "messages": [{"role": "user", "content": f"{number} {' '.join(text)}"}],
                    "max_tokens": max_tokens, "stream": stream, "ignore_eos": True,
                }
            ).encode()  # fmt: skip
            head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: count\r\ncontent-length: {len(body)}\r\n"
            link.data_received(f"{head}content-type: application/json\r\n\r\n".encode() + body)

    async def settle(self) -> None:
        """Let everything run that can."""
        for _ in range(_TURNS):
            await asyncio.sleep(0)

    async def steps(self, count: int) -> None:
        for _ in range(count):
            self._engine.step()
            await self.settle()

    @property
    def events(self) -> int:
        """Server-sent events that all connections have seen."""
        return sum(wire.events for wire in self._wires)

    @property
    def answers(self) -> int:
        return sum(wire.answers for wire in self._wires)
