"""What a backend says of its cache and its load, in every form in which Dynamo's backends say it."""

from __future__ import annotations

import asyncio
import inspect
from typing import Any

import pytest

from dynamo_core.contracts import KvCleared, KvRemoved, KvStored
from dynamo_core.errors import ConfigError, InvalidRequest
from dynamo_core.kv import sequence_hashes
from dynamo_core.llm import KvEventPublisher, WorkerMetricsPublisher
from dynamo_core.serving.wire import LOAD_TOPIC, decode_kv_batch, decode_load
from dynamo_core.testing import InprocCluster

PATH = "dynamo.backend.generate"
TOKENS = [1, 2, 3, 4]


class Heard:
    """The events of a publisher, batch by batch."""

    def __init__(self, runtime: Any, **options: Any) -> None:
        self.batches: list[list[Any]] = []
        runtime.event_plane.publish = self._hear
        self.publisher = KvEventPublisher(runtime.endpoint(PATH), kv_block_size=2, **options)

    def _hear(self, _: str, payload: bytes) -> None:
        batch = decode_kv_batch(payload)
        assert batch is not None
        self.batches.append(
            [type(event)(tuple(event.seq_hashes), event.tier) for event in batch.events if not isinstance(event, KvCleared)]
        )

    def last(self) -> list[Any]:
        return self.batches[-1]


@pytest.fixture
async def heard(cluster: InprocCluster) -> Heard:
    return Heard(await cluster.runtime())


async def test_a_parent_is_in_dynamos_place_in_both_orders(heard: Heard) -> None:
    first, second, third = sequence_hashes([1, 2, 3, 4, 5, 6], 2)
    heard.publisher.publish_stored([1, 2], [2], [70])
    assert heard.last() == [KvStored((first,))]
    heard.publisher.publish_stored([3, 4], [2], [71], 70)
    assert heard.last() == [KvStored((second,))]
    heard.publisher.publish_stored([5, 6], [2], [72], 0, 71)
    assert heard.last() == [KvStored((third,))]


async def test_adapters_and_salts_are_those_of_requests(heard: Heard) -> None:
    heard.publisher.publish_stored(TOKENS, [2, 2], [1, 2], None, None, "adapter", None, "tenant")
    assert heard.last() == [KvStored(tuple(sequence_hashes(TOKENS, 2, lora="adapter", salt="tenant")))]
    heard.publisher.publish_stored([5, 6], [2], [3], 2, lora_name="adapter", cache_salt="tenant")
    assert heard.last() == [KvStored(tuple(sequence_hashes([*TOKENS, 5, 6], 2, lora="adapter", salt="tenant")[2:]))]
    images = [{"mm_objects": [{"mm_hash": 7}]}, None]
    heard.publisher.publish_stored(TOKENS, [2, 2], [11, 12], None, images, cache_salt="tenant")
    (event,) = heard.last()
    assert not set(event.seq_hashes) & set(sequence_hashes(TOKENS, 2, salt="tenant"))


async def test_a_batch_is_one_batch_and_all_or_nothing(heard: Heard) -> None:
    stored = {"type": "stored", "token_ids": TOKENS, "num_block_tokens": [2, 2], "block_hashes": [1, 2], "parent_hash": None}
    hashes = tuple(sequence_hashes(TOKENS, 2))
    heard.publisher.publish_batch([stored, {"type": "removed", "block_hashes": [2]}])
    assert heard.batches == [[KvStored(hashes), KvRemoved(hashes[1:])]]
    for wrong, event in {
        "event 1 has type 'cleared'": {"type": "cleared"},
        "event 1 cannot be read: .*block_hashes": {"type": "removed"},
        "2 block hashes need as many": {**stored, "num_block_tokens": [2]},
        "3 of 4": {**stored, "token_ids": TOKENS[:3]},
        "is_eagle": {**stored, "is_eagle": True},
    }.items():
        with pytest.raises(InvalidRequest, match=wrong):
            heard.publisher.publish_batch([stored, event])
    assert len(heard.batches) == 1


async def test_what_is_accepted_and_what_is_refused(cluster: InprocCluster) -> None:
    runtime = await cluster.runtime()
    Heard(runtime, worker_id=7, image_token_id=3, video_token_id=4, kv_state_endpoint=f"dyn://{PATH}", batching_timeout_ms=5)
    with pytest.raises(ConfigError, match=r"kv_state_endpoint is a\.b\.c, but events belong to dynamo\.backend\.generate"):
        Heard(runtime, kv_state_endpoint="a.b.c")
    names = """endpoint worker_id kv_block_size dp_rank enable_local_indexer zmq_endpoint zmq_topic batching_timeout_ms
        image_token_id kv_state_endpoint video_token_id"""
    assert list(inspect.signature(KvEventPublisher).parameters) == names.split()


async def test_the_blocks_of_all_ranks_are_the_workers(cluster: InprocCluster) -> None:
    runtime = await cluster.runtime()
    told: list[Any] = []
    runtime.event_plane.subscribe(
        await runtime.event_plane.address(), LOAD_TOPIC, lambda payload: told.append(decode_load(payload))
    )
    publisher = WorkerMetricsPublisher()
    await publisher.create_endpoint(runtime.endpoint(PATH))
    publisher.publish(None, 3)
    publisher.publish(1, active_decode_blocks=1, kv_used_blocks=5)
    publisher.publish(0, 2)
    publisher.publish(dp_rank=1)
    async with asyncio.timeout(10):
        while len(told) < 4:  # noqa: ASYNC110  # the event plane delivers in its own time
            await asyncio.sleep(0)
    assert [reading.load.kv_used_blocks for reading in told] == [3, 8, 7, 2]
