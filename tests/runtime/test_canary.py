"""Instances that fail their canary are taken out of discovery and let back in."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from dynamo_core.errors import EngineError
from dynamo_core.runtime import CanarySettings, DistributedRuntime

PATH = "test.backend.generate"
OFTEN = CanarySettings(wait=0.05, timeout=0.2)


class Backend:
    """An endpoint that works, hangs or fails, as the test says."""

    def __init__(self) -> None:
        self.mode = "works"
        self.requests: list[Any] = []

    async def generate(self, request: Any) -> AsyncIterator[int]:
        self.requests.append(request)
        if self.mode == "hangs":
            await asyncio.Event().wait()
        if self.mode == "fails":
            raise EngineError("no device")
        yield 1


@pytest.fixture
async def pair(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[tuple[DistributedRuntime, DistributedRuntime]]:
    settings = getattr(request, "param", OFTEN)

    def make() -> DistributedRuntime:
        return DistributedRuntime(file_kv=str(tmp_path / "kv"), event_plane="inproc", canary=settings)

    server, caller = make(), make()
    yield server, caller
    await caller.shutdown()
    await server.shutdown()


async def until(condition: Any) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110  # discovery and canaries go by time
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("mode", ["hangs", "fails"])
async def test_an_instance_that_fails_its_canary_leaves_and_comes_back(
    pair: Any, mode: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    server, caller = pair
    backend = Backend()
    serving = asyncio.create_task(server.endpoint(PATH).serve_endpoint(backend.generate, health_check_payload={"canary": 1}))
    client = await caller.endpoint(PATH).client()
    await client.wait_for_instances(20)
    backend.mode = mode
    await until(lambda: not client.instance_ids())
    assert server.served(PATH).suspended == {"canary"}
    assert "failed its canary" in caplog.text
    backend.mode = "works"
    assert await client.wait_for_instances(20) == [server.instance_id]
    await until(lambda: "answers its canary again" in caplog.text)
    assert backend.requests[0] == {"canary": 1}
    serving.cancel()
    await asyncio.gather(serving, return_exceptions=True)


@pytest.mark.parametrize("pair", [CanarySettings(wait=1.0, timeout=5.0)], indirect=True)
async def test_traffic_makes_canaries_superfluous(pair: Any) -> None:
    server, caller = pair
    backend = Backend()
    serving = asyncio.create_task(server.endpoint(PATH).serve_endpoint(backend.generate, health_check_payload="canary"))
    client = await caller.endpoint(PATH).client()
    await client.wait_for_instances(20)
    loop = asyncio.get_running_loop()
    begun = loop.time()
    while loop.time() - begun < 2.5:
        async for _ in client.generate("request"):
            pass
    assert "canary" not in backend.requests
    await until(lambda: "canary" in backend.requests)
    serving.cancel()
    await asyncio.gather(serving, return_exceptions=True)


async def test_canaries_that_wait_behind_running_requests_take_nobody_out(pair: Any, caplog: pytest.LogCaptureFixture) -> None:
    server, caller = pair
    running, full = asyncio.Event(), asyncio.Event()
    canaries = 0

    async def generate(request: Any) -> AsyncIterator[int]:
        nonlocal canaries
        if request == "canary" and running.is_set():
            canaries += 1
            await full.wait()
        while request == "long":
            running.set()
            yield 0
            await asyncio.sleep(OFTEN.wait * (0.1 if not slow else 2))
        yield 1

    slow = False
    serving = asyncio.create_task(server.endpoint(PATH).serve_endpoint(generate, health_check_payload="canary"))
    client = await caller.endpoint(PATH).client()
    await client.wait_for_instances(20)
    stream = client.generate("long")
    async with asyncio.timeout(20):
        for _ in range(40):  # items come all the time: no canary is needed
            await anext(stream)
        assert canaries == 0
        slow = True
        while canaries < 3:  # items come less often than canaries, but they come
            await anext(stream)
    assert client.instance_ids() == [server.instance_id]
    assert "failed its canary" not in caplog.text
    await stream.aclose()
    await until(lambda: not client.instance_ids())  # nothing moves any more, and the canary still waits
    serving.cancel()
    await asyncio.gather(serving, return_exceptions=True)


async def test_without_a_payload_or_with_canaries_off_none_is_sent(pair: Any, tmp_path: Path) -> None:
    server, _ = pair
    served = await server.endpoint(PATH).serve(lambda request, context, sink: sink.end())
    assert served.canary is None
    off = DistributedRuntime(file_kv=str(tmp_path / "kv"), event_plane="inproc", canary=CanarySettings(enabled=False))
    served = await off.endpoint(PATH).serve(lambda request, context, sink: sink.end(), health_check_payload=1)
    assert served.canary is None
    await off.shutdown()
