"""A worker's KV events, published, numbered and remembered: what is in its caches now is to be had by whoever comes late."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby, islice
from typing import Any

from dynamo_core.contracts import Context, KvBatch, KvCleared, KvEvent, KvRemoved, KvStored, ResponseSink
from dynamo_core.kv.codec import encode_kv_batch
from dynamo_core.runtime import DistributedRuntime, Served
from dynamo_core.serving.wire import KV_TOPIC

__all__ = ["KV_STATE_ENDPOINT", "MIRROR_BLOCKS", "KvJournal", "KvMirror", "journal_of"]

KV_STATE_ENDPOINT = "kv_state"
"""Beside ``generate``: any request is answered by :class:`KvBatch` items (msgpack in bytes), the state of each rank in turn. Each
rank's first begins with :class:`KvCleared`, and all have the number of its last published batch."""

MIRROR_BLOCKS = 1 << 20
"""Blocks remembered of one rank and tier; the oldest go first."""
_CHUNK = 8192
"""Blocks an item of the answer."""


class KvMirror:
    """The blocks of one data-parallel rank by tier, in the order of storing. O(1) a block, some 150 bytes each."""

    def __init__(self, limit: int = MIRROR_BLOCKS) -> None:
        self._limit = limit
        self._tiers: dict[str, dict[int, int]] = {}
        """Of each block the run (one :class:`KvStored`) that brought it."""
        self._run = 0

    def __len__(self) -> int:
        return sum(map(len, self._tiers.values()))

    def apply(self, event: KvEvent) -> None:
        if isinstance(event, KvCleared):
            self._tiers.clear()
        elif isinstance(event, KvRemoved):
            blocks = self._tiers.get(event.tier, {})
            for seq_hash in event.seq_hashes:
                blocks.pop(seq_hash, None)
        else:
            self._stored(event)

    def events(self) -> Iterator[KvStored]:
        """What it holds, as runs of successors, none longer than an item may be."""
        for tier, blocks in self._tiers.items():
            for _, run in groupby(blocks.items(), key=lambda item: item[1]):
                hashes = [seq_hash for seq_hash, _ in run]
                for start in range(0, len(hashes), _CHUNK):
                    yield KvStored(tuple(hashes[start : start + _CHUNK]), tier)

    def _stored(self, event: KvStored) -> None:
        blocks = self._tiers.setdefault(event.tier, {})
        self._run += 1
        for seq_hash in event.seq_hashes:
            blocks.pop(seq_hash, None)  # to the end: it was used again
            blocks[seq_hash] = self._run
        for seq_hash in tuple(islice(blocks, max(0, len(blocks) - self._limit))):
            del blocks[seq_hash]


class KvJournal:
    """One per process and component. ``send`` is the event plane's ``publish``."""

    def __init__(self, worker_id: int, send: Callable[[str, bytes], None]) -> None:
        self._worker_id = worker_id
        self._send = send
        self._next: dict[int, int] = {}
        self._mirrors: dict[int, KvMirror] = {}
        self._served: Served | None = None

    @property
    def following(self) -> dict[int, int]:
        """By rank: the number that its next batch will have."""
        return self._next

    def publish(self, events: Sequence[KvEvent], dp_rank: int = 0) -> None:
        """Never blocks. Raises :class:`OverflowError`, and tells nothing, for a hash that has no place in 64 bits."""
        number = self._next.get(dp_rank, 0)
        payload = encode_kv_batch(KvBatch(self._worker_id, number, tuple(events), dp_rank))
        self._next[dp_rank] = number + 1
        mirror = self._mirrors.get(dp_rank)
        if mirror is None:
            mirror = self._mirrors[dp_rank] = KvMirror()
        for event in events:
            mirror.apply(event)
        self._send(KV_TOPIC, payload)

    def state(self) -> Iterator[KvBatch]:
        """Take it within one turn of the loop, so that it is of one moment."""
        for dp_rank, mirror in self._mirrors.items():
            number = self._next[dp_rank] - 1
            events: list[KvEvent] = [KvCleared()]
            blocks = 0
            for event in mirror.events():
                if blocks + len(event.seq_hashes) > _CHUNK:
                    yield KvBatch(self._worker_id, number, tuple(events), dp_rank)
                    events, blocks = [], 0
                events.append(event)
                blocks += len(event.seq_hashes)
            yield KvBatch(self._worker_id, number, tuple(events), dp_rank)

    def answer(self, request: Any, context: Context, sink: ResponseSink) -> None:
        """The handler of :data:`KV_STATE_ENDPOINT`. About 50 ns a block."""
        del request, context
        for batch in self.state():
            sink.item(encode_kv_batch(batch))
        sink.end()

    async def serve(self, runtime: DistributedRuntime, component: str) -> Served:
        """``component``: ``namespace.component``. Serving it again changes nothing."""
        if self._served is None:
            self._served = await runtime.endpoint(f"{component}.{KV_STATE_ENDPOINT}").serve(self.answer)
        return self._served


def journal_of(runtime: DistributedRuntime, component: str) -> KvJournal:
    """The one of ``namespace.component`` in this process; its numbers go on whoever publishes."""
    journals: dict[str, KvJournal] = runtime.attached.setdefault(__name__, {})
    if component not in journals:

        def send(topic: str, payload: bytes) -> None:
            runtime.event_plane.publish(topic, payload)  # which is there once the runtime has started

        journals[component] = KvJournal(runtime.instance_id, send)
    return journals[component]
