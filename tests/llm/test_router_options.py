"""What a KvRouter is told when it is made, and with each request."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from dynamo_core.contracts import Context
from dynamo_core.errors import ConfigError, InvalidRequest, Overloaded
from dynamo_core.llm import (
    AisPerfConfig,
    KvEventPublisher,
    KvRouter,
    LoadThresholdConfig,
    ModelInput,
    ModelRuntimeConfig,
    ModelType,
    RoutingConstraints,
    register_model,
)
from dynamo_core.testing import InprocCluster

PATH = "dynamo.backend.generate"
PROMPT = list(range(100, 164))


class Workers:
    """Two workers with two ranks each, that repeat their prompts."""

    def __init__(self, cluster: InprocCluster, folder: Path) -> None:
        self.cluster = cluster
        self.folder = str(folder)
        self.ids: list[int] = []
        self.endpoints: list[Any] = []
        self.yielded = 0
        self._tasks: list[asyncio.Task[Any]] = []

    async def generate(self, request: dict[str, Any], context: Context) -> AsyncIterator[Any]:
        for token in request["token_ids"] * 100:
            if context.is_stopped():
                return
            self.yielded += 1
            yield {"token_ids": [token]}
            await asyncio.sleep(0)
        yield {"finish_reason": "stop"}

    async def start(self) -> None:
        config = ModelRuntimeConfig()
        config.data_parallel_size = 2
        config.max_num_batched_tokens = 100
        for _ in range(2):
            endpoint = (await self.cluster.runtime()).endpoint(PATH)
            self._tasks.append(asyncio.create_task(endpoint.serve_endpoint(self.generate)))
            await register_model(
                ModelInput.Tokens, ModelType.Chat, endpoint, self.folder, "m", kv_cache_block_size=16, runtime_config=config
            )
            self.endpoints.append(endpoint)
            self.ids.append(endpoint.connection_id())

    async def router(self, *args: Any, **options: Any) -> KvRouter:
        router = KvRouter((await self.cluster.runtime()).endpoint(PATH), 16, *args, **options)
        await until(lambda: both(router))
        return router

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def both(router: KvRouter) -> bool:
    """It knows both workers with their ranks."""
    return len(await router.get_potential_loads([])) == 4


async def listens(router: KvRouter, worker: int) -> bool:
    """It knows that the worker publishes KV events."""
    return router._workers.cards[worker].kv_events


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(20):
        while not await condition():  # noqa: ASYNC110  # discovery and events tell in their own time
            await asyncio.sleep(0.005)


@pytest.fixture
async def workers(cluster: InprocCluster, tiny_model: Path) -> AsyncIterator[Workers]:
    made = Workers(cluster, tiny_model)
    await made.start()
    yield made
    await made.stop()


async def test_sessions_stay_where_they_were(workers: Workers) -> None:
    router = await workers.router(None, AisPerfConfig({}), 60, session_affinity_mode="hard")
    first = await router.best_worker(PROMPT, request_id="a", session_id="s")
    for number in range(6):
        assert (await router.best_worker([number] * 32, request_id=str(number), session_id="s")).worker_id == first.worker_id
    assert (await router.best_worker([77] * 32)).worker_id != first.worker_id
    await router.close()


async def test_thresholds_say_when_workers_are_busy(workers: Workers) -> None:
    router = await workers.router(load_threshold_config=LoadThresholdConfig(active_prefill_tokens_threshold=10))
    for number in range(4):
        await router.best_worker([number] * 32, request_id=str(number))
    with pytest.raises(Overloaded):
        await router.best_worker([9] * 32, request_id="more")
    await router.free("0")
    await router.best_worker([9] * 32, request_id="more")
    await router.close()


async def test_potential_loads_are_told_by_rank(workers: Workers) -> None:
    router = await workers.router()
    booked = await router.best_worker([1] * 48, request_id="a", routing_constraints=RoutingConstraints())
    rows = await router.get_potential_loads(PROMPT, None, None, None)
    assert {(row["worker_id"], row["dp_rank"]) for row in rows} == {(worker, rank) for worker in workers.ids for rank in (0, 1)}
    for row in rows:
        there = (row["worker_id"], row["dp_rank"]) == booked[:2]
        assert row["potential_prefill_tokens"] == 64 + 48 * there
        assert row["potential_decode_blocks"] == 4 + 3 * there
        assert row["active_requests"] == there
    await router.mark_prefill_complete("a")
    loads = await router.get_potential_loads(PROMPT)
    assert {row["potential_prefill_tokens"] for row in loads} == {64}
    await router.close()


async def test_dumped_events_name_every_block_of_every_worker(workers: Workers) -> None:
    publisher = KvEventPublisher(workers.endpoints[1], kv_block_size=16, dp_rank=1)
    router = await workers.router()
    await until(lambda: listens(router, workers.ids[1]))
    assert await router.dump_events() == "[]"
    publisher.publish_stored(PROMPT, [16] * 4, [1, 2, 3, 4])

    async def dumped() -> bool:
        return len(json.loads(await router.dump_events())) == 1

    await until(dumped)
    (event,) = json.loads(await router.dump_events())
    assert (event["worker_id"], event["storage_tier"], event["event"]["dp_rank"]) == (workers.ids[1], "device", 1)
    assert len(event["event"]["data"]["stored"]["blocks"]) == 4
    assert (await router.best_worker(PROMPT))[:2] == (workers.ids[1], 1)
    await router.close()


async def test_an_override_holds_for_its_request_alone(workers: Workers) -> None:
    publisher = KvEventPublisher(workers.endpoints[0], kv_block_size=16)
    router = await workers.router()
    await until(lambda: listens(router, workers.ids[0]))
    publisher.publish_stored(PROMPT, [16] * 4, [1, 2, 3, 4])

    async def found() -> bool:
        return (await router.best_worker(PROMPT)).overlap_blocks == 4

    await until(found)
    chosen = {(await router.best_worker(PROMPT, {"router_temperature": 1000.0})).worker_id for _ in range(40)}
    assert chosen == set(workers.ids)
    with pytest.raises(InvalidRequest, match="router_temperature"):
        await router.best_worker(PROMPT, {"router_temperature": -1.0}, "a")
    with pytest.raises(InvalidRequest, match="router_temperature"):
        async for _ in await router.generate(PROMPT, "m", router_config_override={"router_temperature": -1.0}):
            pass
    assert {(await router.best_worker(PROMPT)).worker_id for _ in range(5)} == {workers.ids[0]}
    await router.close()


async def test_a_caller_who_does_not_read_holds_the_worker_back(workers: Workers) -> None:
    router = await workers.router()
    stream = await router.generate(PROMPT * 4, "m", response_buffer_size=0)
    assert (await anext(stream))["token_ids"] == PROMPT[:1]
    before = -1
    async with asyncio.timeout(20):
        while before != workers.yielded:
            before = workers.yielded
            await asyncio.sleep(0.2)  # longer than the workers need for all of it
    assert workers.yielded < 64 * 4 * 100 / 2
    rest = [chunk async for chunk in stream]
    assert rest[-1]["finish_reason"] == "stop"
    assert sum(len(chunk["token_ids"]) for chunk in rest) == 64 * 4 * 100 - 1
    await router.close()


async def test_what_cannot_be_is_refused(cluster: InprocCluster) -> None:
    endpoint = (await cluster.runtime()).endpoint(PATH)
    with pytest.raises(ConfigError, match="session_affinity_mode is 'loose': choose hard or soft"):
        KvRouter(endpoint, 16, session_affinity_mode="loose")
    with pytest.raises(ConfigError, match="session_affinity_ttl_secs is 0"):
        KvRouter(endpoint, 16, session_affinity_ttl_secs=0)
    router = KvRouter(endpoint, 16)
    with pytest.raises(InvalidRequest, match="leave block_mm_infos"):
        await router.best_worker([1], block_mm_infos=[{"mm_objects": []}])
    with pytest.raises(InvalidRequest, match="response_buffer_size is -1"):
        await router.generate([1], "m", response_buffer_size=-1)
    await router.close()
