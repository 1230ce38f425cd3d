"""The feed against a publisher that loses things: order, holes, both generations of vLLM's replay."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
import zmq
import zmq.asyncio

from dynamo_core.contracts import KvCleared, KvEvent, KvStored
from dynamo_core.kv.events import VllmEventTranslator
from dynamo_core.kv.hashing import sequence_hashes
from dynamo_vllm.args import Addresses
from dynamo_vllm.kv_events import KvEventFeed

BLOCK = 4


class Publisher:
    """vLLM's side, with batches that can be kept from the subscriber and from the replay."""

    def __init__(self, folder: Path, *, topic_in_replay: bool) -> None:
        self.addresses = Addresses(f"ipc://{folder}/e", f"ipc://{folder}/r")
        self._context = zmq.asyncio.Context()
        self._pub = self._context.socket(zmq.XPUB)
        self._pub.bind(self.addresses.events)
        self._router = self._context.socket(zmq.ROUTER)
        self._router.bind(self.addresses.replay)
        self._topic = [b"kv"] if topic_in_replay else []
        self.kept: dict[int, bytes] = {}
        self._seq = 0
        self._task = asyncio.create_task(self._replays())

    async def subscribed(self) -> None:
        await self._pub.recv()

    async def publish(self, token_ids: list[int], *, lost: bool = False, forgotten: bool = False) -> None:
        event = {
            "type": "BlockStored", "block_hashes": [hash(tuple(token_ids))], "parent_block_hash": None, "token_ids": token_ids,
            "block_size": BLOCK, "lora_id": None, "medium": "GPU", "lora_name": None,
        }  # fmt: skip
        payload = msgspec.msgpack.encode([0.0, [event], 0])
        seq, self._seq = self._seq, self._seq + 1
        if not forgotten:
            self.kept[seq] = payload
        if not lost:
            await self._pub.send_multipart([b"kv", seq.to_bytes(8, "big"), payload])

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._context.destroy(linger=0)

    async def _replays(self) -> None:
        while True:
            peer, _, start = await self._router.recv_multipart()
            for seq, payload in self.kept.items():
                if seq >= int.from_bytes(start, "big"):
                    await self._router.send_multipart([peer, b"", *self._topic, seq.to_bytes(8, "big"), payload])
            end = [b""] if self._topic else []
            await self._router.send_multipart([peer, b"", *end, (-1).to_bytes(8, "big", signed=True), b""])


@pytest.fixture(params=[False, True], ids=["0.24", "0.32"])
async def publisher(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Publisher]:
    publisher = Publisher(tmp_path, topic_in_replay=request.param)
    yield publisher
    await publisher.close()


class Heard:
    def __init__(self) -> None:
        self.events: list[KvEvent] = []
        self._news = asyncio.Event()

    def __call__(self, events: object) -> None:
        self.events += events  # type: ignore[operator]
        self._news.set()

    async def count(self, count: int) -> list[KvEvent]:
        async with asyncio.timeout(10):
            while len(self.events) < count:
                self._news.clear()
                await self._news.wait()
        return self.events


def stored(*tokens: int) -> KvStored:
    return KvStored(tuple(sequence_hashes(tokens, BLOCK)))


async def test_batches_before_the_start_and_lost_ones_are_asked_for_again(publisher: Publisher) -> None:
    heard = Heard()
    feed = KvEventFeed(publisher.addresses, VllmEventTranslator(BLOCK), heard)
    await publisher.publish([1, 1, 1, 1])
    await feed.start()
    assert heard.events == [stored(1, 1, 1, 1)]
    await publisher.subscribed()
    await publisher.publish([2, 2, 2, 2])
    await publisher.publish([3, 3, 3, 3], lost=True)
    await publisher.publish([4, 4, 4, 4])
    assert await heard.count(4) == [stored(n, n, n, n) for n in (1, 2, 3, 4)]
    await feed.close()


async def test_what_cannot_be_had_again_voids_what_was_known(publisher: Publisher) -> None:
    heard = Heard()
    feed = KvEventFeed(publisher.addresses, VllmEventTranslator(BLOCK), heard)
    await feed.start()
    await publisher.subscribed()
    await publisher.publish([1, 1, 1, 1])
    await publisher.publish([2, 2, 2, 2], lost=True, forgotten=True)
    await publisher.publish([3, 3, 3, 3])
    assert await heard.count(3) == [stored(1, 1, 1, 1), KvCleared(), stored(3, 3, 3, 3)]
    await feed.close()
