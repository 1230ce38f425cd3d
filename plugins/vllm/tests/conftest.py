"""One real engine for the whole session: a start takes 16 to 60 s."""

from __future__ import annotations

import asyncio
import gc
import itertools
import random
import warnings
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import msgspec
import pytest
import pytest_asyncio

from dynamo_core.contracts import (
    Context,
    EngineChunk,
    EngineContext,
    EngineInfo,
    EngineRequest,
    KvCleared,
    KvEvent,
    KvRemoved,
    SamplingParams,
    StopConditions,
)
from dynamo_core.testing.tiny_model import make_tiny_model
from dynamo_vllm.engine import VllmEngine

BLOCKS = 96
ENGINE_ARGS = {
    "dtype": "float32",  # in bfloat16 two tokens are at times equally likely, and the shape of a batch decides
    "max_model_len": 1024,
    "max_num_seqs": 4,
    "num_gpu_blocks_override": BLOCKS,
}


class Answer(msgspec.Struct):
    token_ids: list[int]
    last: EngineChunk
    cached_tokens: int | None
    chunks: list[EngineChunk]


class RealEngine:
    """The engine, what it published, and a short way to ask it."""

    def __init__(self, folder: Path, run_dir: Path) -> None:
        self.events: list[KvEvent] = []
        self.fatal: list[str] = []
        self.context = EngineContext(
            model_path=str(folder),
            model_name="tiny",
            worker_id=1,
            args=ENGINE_ARGS,
            run_dir=str(run_dir),
            cpu_cores=(0,),
            publish_kv_events=self.events.extend,
            on_fatal=self.fatal.append,
        )
        self.engine = VllmEngine(None, self.context)
        self.info = EngineInfo()
        self._ids = itertools.count()
        self._random = random.Random(5)

    def prompt(self, length: int) -> list[int]:
        """One that nobody has asked before."""
        return [self._random.randrange(8, 600) for _ in range(length)]

    def request(self, token_ids: Sequence[int], max_tokens: int = 16, **more: object) -> EngineRequest:
        sampling = more.pop("sampling", SamplingParams(temperature=0.0))
        stop = more.pop("stop", StopConditions(max_tokens=max_tokens, ignore_eos=True))
        return EngineRequest(id=f"r{next(self._ids)}", token_ids=token_ids, sampling=sampling, stop=stop, **more)  # type: ignore[arg-type]

    async def ask(self, token_ids: Sequence[int], max_tokens: int = 16, **more: object) -> Answer:
        chunks = [chunk async for chunk in self.engine.generate(self.request(token_ids, max_tokens, **more), Context())]
        tokens = [token for chunk in chunks for token in chunk.token_ids]
        return Answer(tokens, chunks[-1], chunks[0].cached_tokens, chunks)

    def cached(self) -> set[int]:
        """What a router that heard all events believes to be in the cache."""
        known: set[int] = set()
        for event in self.events:
            if isinstance(event, KvCleared):
                known.clear()
            elif isinstance(event, KvRemoved):
                known.difference_update(event.seq_hashes)
            else:
                known.update(event.seq_hashes)
        return known

    async def until(self, condition: Callable[[], bool], seconds: float = 20.0) -> None:
        async with asyncio.timeout(seconds):
            while not condition():  # noqa: ASYNC110  # other processes bring it about
                await asyncio.sleep(0.01)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def vllm(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RealEngine]:
    real = RealEngine(tiny_model, tmp_path_factory.mktemp("run"))
    try:
        real.info = await real.engine.start()
        yield real
    finally:
        with warnings.catch_warnings():  # this is the teardown of whatever test was the session's last
            warnings.simplefilter("ignore")
            await real.engine.stop()
            gc.collect()
