"""Indexes of caches: what workers tell, and what they should have by what was sent to them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from dynamo_core.errors import ConfigError, InvalidRequest
from dynamo_core.llm import (
    ApproxKvIndexer,
    KvEventPublisher,
    KvIndexer,
    ModelInput,
    ModelType,
    compute_block_hash_for_seq,
    register_model,
)
from dynamo_core.testing import InprocCluster
from dynamo_core.testing.clock import FakeClock

PATH = "dynamo.backend.generate"
PROMPT = list(range(64))


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110  # discovery and events tell in their own time
            await asyncio.sleep(0.005)


async def echo(request: Any) -> AsyncIterator[Any]:
    yield {"finish_reason": "stop"}


async def test_an_indexer_has_what_workers_told_before_and_after_it_came(cluster: InprocCluster, tiny_model: Path) -> None:
    tasks = []
    publishers = []
    endpoints = [(await cluster.runtime()).endpoint(PATH) for _ in range(2)]
    for endpoint in endpoints:
        tasks.append(asyncio.create_task(endpoint.serve_endpoint(echo)))
        await register_model(ModelInput.Tokens, ModelType.Chat, endpoint, str(tiny_model), "m", kv_cache_block_size=16)
        publishers.append(KvEventPublisher(endpoint, kv_block_size=16, dp_rank=1))
    publishers[0].publish_stored(PROMPT, [16] * 4, [1, 2, 3, 4])
    indexer = KvIndexer((await cluster.runtime()).endpoint(PATH), 16)
    first, second = ((endpoint.connection_id(), 1) for endpoint in endpoints)
    await until(lambda: indexer.find_matches_for_request(PROMPT).scores == {first: 4})
    publishers[1].publish_stored(PROMPT[:32], [16] * 2, [1, 2])
    publishers[0].publish_removed([4])
    await until(lambda: indexer.find_matches_for_request(PROMPT).scores == {first: 3, second: 2})
    assert indexer.find_matches(compute_block_hash_for_seq(PROMPT, 16)[:1]).scores == {first: 1, second: 1}
    assert indexer.find_matches_for_request(PROMPT, "adapter").scores == {}
    assert indexer.block_size() == 16
    tasks[0].cancel()
    await endpoints[0].runtime.shutdown()
    await until(lambda: indexer.find_matches_for_request(PROMPT).scores == {second: 2})
    await indexer.close()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_an_approximate_indexer_believes_in_what_was_sent_for_a_while() -> None:
    clock = FakeClock()
    indexer = ApproxKvIndexer(None, 16, 10.0, clock=clock)
    assert indexer.find_matches_for_request(PROMPT).scores == {}
    await indexer.process_routing_decision_for_request(PROMPT, 5)
    clock.advance(6)
    await indexer.process_routing_decision_for_request(PROMPT[:40], 6, 1)
    assert indexer.find_matches_for_request(PROMPT).scores == {(5, 0): 4, (6, 1): 2}
    clock.advance(5)
    assert indexer.find_matches_for_request(PROMPT).scores == {(6, 1): 2}
    assert indexer.find_matches_for_request(PROMPT, lora_name="a").scores == {}
    clock.advance(6)
    assert indexer.find_matches_for_request(PROMPT).scores == {}
    assert indexer.block_size() == 16
    with pytest.raises(InvalidRequest, match="dp_rank is -1"):
        await indexer.process_routing_decision_for_request(PROMPT, 5, -1)


async def test_sizes_and_times_that_cannot_be_are_refused(cluster: InprocCluster) -> None:
    endpoint = (await cluster.runtime()).endpoint(PATH)
    with pytest.raises(ConfigError, match="block size is 0"):
        KvIndexer(endpoint, 0)
    with pytest.raises(ConfigError, match="block size is 0"):
        ApproxKvIndexer(endpoint, 0)
    with pytest.raises(ConfigError, match="router_ttl_secs is 0"):
        ApproxKvIndexer(endpoint, 16, 0)
