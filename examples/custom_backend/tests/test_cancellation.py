from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import AsyncIterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from dynamo_core.contracts import Context
from dynamo_core.testing import InprocCluster

FOLDER = Path(__file__).parents[1] / "cancellation"


def program(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"cancellation_{name}", FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
async def cluster() -> AsyncIterator[InprocCluster]:
    async with InprocCluster() as made:
        yield made


async def connected(cluster: InprocCluster, component: str) -> Any:
    client = await (await cluster.runtime()).endpoint(f"demo.{component}.generate").client()
    await client.wait_for_instances(10)
    return client


async def serve(cluster: InprocCluster, component: str, handler: Any) -> asyncio.Task[None]:
    return asyncio.create_task((await cluster.runtime()).endpoint(f"demo.{component}.generate").serve_endpoint(handler))


async def test_the_handler_stops_when_its_context_says_so() -> None:
    context = Context()
    stream = program("server").Counter(0).generate(None, context)
    assert [await anext(stream), await anext(stream)] == [0, 1]
    context.stop_generating()
    with pytest.raises(asyncio.CancelledError):
        await anext(stream)


@pytest.mark.parametrize("middle", [False, True])
async def test_a_client_that_cancels_stops_the_server_through_any_hop(
    cluster: InprocCluster, middle: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    tasks = [await serve(cluster, "server", program("server").Counter(0.01).generate)]
    if middle:
        tasks.append(await serve(cluster, "middle", program("middle_server").Middle(await connected(cluster, "server")).generate))
    client = await connected(cluster, "middle" if middle else "server")
    async with asyncio.timeout(20):
        numbers = await program("client").read_three(client)
    assert numbers[:3] == [0, 1, 2]
    assert len(numbers) < 20
    assert "Server: cancelled before" in capsys.readouterr().out
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
