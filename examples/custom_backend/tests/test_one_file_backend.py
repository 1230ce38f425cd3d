from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import AsyncIterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from dynamo_core.config import Settings
from dynamo_core.contracts import Context
from dynamo_core.plugins import activate
from dynamo_core.serving.manager import ModelManager
from dynamo_core.testing import InprocCluster
from dynamo_core.testing.tiny_model import make_tiny_model


@pytest.fixture(scope="module")
def backend() -> ModuleType:
    path = Path(__file__).parents[1] / "one_file_backend.py"
    spec = importlib.util.spec_from_file_location("one_file_backend", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Publisher:
    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []

    def publish_stored(self, **event: Any) -> None:
        self.told.append(("stored", event["block_hashes"], event["parent_hash"], len(event["token_ids"])))

    def publish_removed(self, hashes: Any) -> None:
        self.told.append(("removed", hashes))

    def publish(self, **load: Any) -> None:
        self.told.append(("load", load["running"]))


def test_the_cache_tells_what_it_stores_and_removes(backend: ModuleType) -> None:
    publisher = Publisher()
    cache = backend.PrefixCache(publisher, blocks=3)
    assert cache.add(range(40)) == 0
    first, second = backend.chained_hashes(range(40))
    assert cache.add([*range(32), *range(50, 66)]) == 32
    (third,) = backend.chained_hashes([*range(32), *range(50, 66)])[2:]
    assert cache.add(range(100, 116)) == 0
    assert publisher.told == [
        ("stored", [first, second], None, 32),
        ("stored", [third], second, 16),
        ("stored", backend.chained_hashes(range(100, 116)), None, 16),
        ("removed", [first]),
    ]


async def test_the_handler_repeats_the_prompt_and_stops_when_asked(backend: ModuleType) -> None:
    publisher = Publisher()
    parrot = backend.Parrot(backend.PrefixCache(publisher), publisher, 0)

    async def said(context: Context, limit: int = 9) -> list[Any]:
        request = {"token_ids": [7, 8, 9], "stop_conditions": {"max_tokens": limit}}
        return [chunk.get("finish_reason") or chunk["token_ids"] async for chunk in parrot.generate(request, context)]

    assert await said(Context()) == [[], [7], [8], [9], "stop"]
    assert await said(Context(), 2) == [[], [7], [8], "length"]
    context = Context()
    context.stop_generating()
    assert await said(context) == [[], "cancelled"]
    assert publisher.told[-1] == ("load", 0)


@pytest.fixture
async def cluster() -> AsyncIterator[InprocCluster]:
    async with InprocCluster() as made:
        yield made


async def test_a_frontend_finds_the_model_its_events_and_its_load(
    backend: ModuleType, cluster: InprocCluster, tmp_path: Path
) -> None:
    folder = make_tiny_model(tmp_path / "m", weights=False)
    worker = await cluster.runtime()
    serving = asyncio.create_task(backend.worker.__wrapped__(worker, str(folder), "parrot", 0.0))
    compiled = activate(("round-robin",))
    manager = ModelManager(await cluster.runtime(), compiled, compiled.router("round-robin"), Settings())
    await manager.start()
    async with asyncio.timeout(20):
        while not (manager.models() and manager.get("parrot").workers and manager.get("parrot").workers[1].card.kv_events):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        while manager.get("parrot").workers[1].load is None:  # noqa: ASYNC110  # discovery and events take their time
            await asyncio.sleep(0.01)
    card = manager.get("parrot").workers[1].card
    assert (card.block_size, card.total_kv_blocks) == (16, 4096)
    await manager.stop()
    await worker.shutdown()
    await asyncio.wait_for(serving, 10)
