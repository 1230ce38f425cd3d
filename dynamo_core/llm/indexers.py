"""Indexes of an endpoint's KV caches, for programs that choose workers themselves."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dynamo_core.contracts import Decision, Hold, KvBatch, KvCleared, KvStored, RouteRequest, WorkerView
from dynamo_core.errors import ConfigError, InvalidRequest
from dynamo_core.kv import PrefixIndex, PromptHashes
from dynamo_core.kv.hashing import chain
from dynamo_core.llm.hashes import compute_block_hash_for_seq
from dynamo_core.llm.radix_tree import OverlapScores, matches
from dynamo_core.plugins import Faults, Provider
from dynamo_core.runtime.component import Endpoint
from dynamo_core.serving.endpoint_router import EndpointRouter
from dynamo_core.specs import RouterSpec

__all__ = ["ApproxKvIndexer", "KvIndexer"]

_LIMIT = 1 << 20
"""Blocks of one worker's rank."""


class _Slots:
    """An index with a slot for each worker's rank."""

    def __init__(self, block_size: int, *, expiring: bool) -> None:
        if block_size < 1:
            raise ConfigError(f"an indexer's block size is {block_size}, but a block has 1 token or more")
        self.block_size = block_size
        self.index = PrefixIndex()
        self.slots: dict[tuple[int, int], int] = {}
        self._owners: dict[int, tuple[int, int]] = {}
        self._expiring = expiring

    def of(self, owner: tuple[int, int]) -> int:
        slot = self.slots.get(owner)
        if slot is None:
            slot = self.slots[owner] = self.index.open(_LIMIT, expiring=self._expiring)
            self._owners[slot] = owner
        return slot

    def drop(self, worker_id: int) -> None:
        for owner in [owner for owner in self.slots if owner[0] == worker_id]:
            self.void(owner)

    def void(self, owner: tuple[int, int]) -> None:
        """It has nothing."""
        slot = self.slots.pop(owner, None)
        if slot is not None:
            self.index.close(slot)
            del self._owners[slot]

    def find(self, prompt: PromptHashes) -> OverlapScores:
        return matches(self.index, prompt, self._owners.__getitem__)

    def find_request(self, token_ids: Sequence[int], lora_name: str | None, is_eagle: bool | None) -> OverlapScores:
        blocks = compute_block_hash_for_seq(token_ids, self.block_size, None, lora_name, is_eagle)
        return self.find(PromptHashes.of(chain(blocks)))


class _Listener(_Slots):
    """A router that routes nothing: it keeps what workers tell of their caches."""

    def select(self, requests: Sequence[RouteRequest], workers: Mapping[int, WorkerView]) -> Sequence[Decision]:
        del workers
        return [Hold(reason="nothing is routed here")] * len(requests)

    def kv_events(self, batch: KvBatch) -> None:
        owner = (batch.worker_id, batch.dp_rank)
        for event in batch.events:
            if isinstance(event, KvCleared):
                self.void(owner)
            elif event.tier == "device":
                change = self.index.stored if isinstance(event, KvStored) else self.index.removed
                change(self.of(owner), event.seq_hashes)

    def kv_lost(self, worker_id: int, dp_rank: int) -> None:
        self.void((worker_id, dp_rank))

    def worker_removed(self, worker_id: int) -> None:
        self.drop(worker_id)


class KvIndexer:
    """What the instances of ``endpoint`` say that their devices' caches hold. Make it on the runtime's event loop: it begins to
    listen there, and has what was cached before as soon as the workers have answered. :meth:`close` ends it, or the runtime."""

    def __init__(self, endpoint: Endpoint, block_size: int) -> None:
        self._listener = listener = _Listener(block_size, expiring=False)

        def made(config: Any, context: Any) -> _Listener:
            del config, context
            return listener

        provider = Provider(spec=RouterSpec(name="kv-indexer", factory=made), plugin="dynamo-core")
        self._workers = EndpointRouter(endpoint, provider, Faults(), block_size=block_size)
        self._starting = asyncio.ensure_future(self._workers.connect())

    def find_matches(self, sequence: Sequence[int]) -> OverlapScores:
        """``sequence``: block hashes, of each block by itself."""
        return self._listener.find(PromptHashes.of(chain(sequence)))

    def find_matches_for_request(
        self, token_ids: Sequence[int], lora_name: str | None = None, is_eagle: bool | None = None
    ) -> OverlapScores:
        return self._listener.find_request(token_ids, lora_name, is_eagle)

    def block_size(self) -> int:
        return self._listener.block_size

    async def close(self) -> None:
        await asyncio.gather(self._starting, return_exceptions=True)
        await self._workers.close()


class ApproxKvIndexer:
    """What workers should have, by the requests that were sent to them in the last ``router_ttl_secs``. Nobody is asked, so that
    ``endpoint`` is accepted and means nothing."""

    def __init__(
        self,
        endpoint: Endpoint | None,
        kv_block_size: int,
        router_ttl_secs: float = 120.0,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        del endpoint
        if router_ttl_secs <= 0:
            raise ConfigError(f"router_ttl_secs is {router_ttl_secs}, but must be above 0")
        self._slots = _Slots(kv_block_size, expiring=True)
        self._ttl = router_ttl_secs
        self._clock = clock

    def find_matches_for_request(
        self, token_ids: Sequence[int], lora_name: str | None = None, is_eagle: bool | None = None
    ) -> OverlapScores:
        now = self._clock()
        for slot in self._slots.slots.values():
            self._slots.index.expire(slot, now)
        return self._slots.find_request(token_ids, lora_name, is_eagle)

    def block_size(self) -> int:
        return self._slots.block_size

    async def process_routing_decision_for_request(self, tokens: Sequence[int], worker_id: int, dp_rank: int = 0) -> None:
        """A request with these tokens was sent there."""
        if dp_rank < 0:
            raise InvalidRequest(f"dp_rank is {dp_rank}, but ranks count from 0")
        blocks = compute_block_hash_for_seq(tokens, self._slots.block_size)
        self._slots.index.stored(self._slots.of((worker_id, dp_rank)), chain(blocks), self._clock() + self._ttl)
