"""Which worker has which prefix, for programs that index KV events themselves."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import msgspec

from dynamo_core.errors import InvalidRequest
from dynamo_core.kv import PrefixIndex, PromptHashes, slots_of
from dynamo_core.kv.hashing import chain

__all__ = ["OverlapScores", "RadixTree", "matches"]

_LIMIT = 1 << 62
"""Blocks of one worker's rank: as many as it has."""


class OverlapScores(msgspec.Struct, frozen=True):
    scores: dict[tuple[int, int], int]
    """Worker and data-parallel rank → leading blocks that are there. Who has none is left out."""
    frequencies: list[int] = []
    """Empty: nobody counts how often a block is asked for."""


class _Block(NamedTuple):
    tokens_hash: int
    parent: int | None
    """The worker's own name of it, as that of the block itself."""
    seq_hash: int


class _StoredBlock(msgspec.Struct):
    block_hash: int
    tokens_hash: int


class _Stored(msgspec.Struct):
    blocks: list[_StoredBlock]
    parent_hash: int | None = None


class _Removed(msgspec.Struct):
    block_hashes: list[int]


class _Data(msgspec.Struct):
    stored: _Stored | None = None
    removed: _Removed | None = None


class _Event(msgspec.Struct):
    event_id: int
    data: _Data | str
    dp_rank: int = 0


class RadixTree:
    """Takes Dynamo's KV cache events (JSON), each worker's in order. Not thread-safe."""

    def __init__(self) -> None:
        self._index = PrefixIndex()
        self._slots: dict[tuple[int, int], int] = {}
        self._owners: dict[int, tuple[int, int]] = {}
        self._blocks: dict[tuple[int, int], dict[int, _Block]] = {}
        """Of each worker's rank, by its own names, predecessors first."""
        self._decode = msgspec.json.Decoder(_Event).decode

    def find_matches(self, sequence: Sequence[int], early_exit: bool = False) -> OverlapScores:
        """``sequence``: block hashes as :func:`~dynamo_core.llm.compute_block_hash_for_seq` has them. O(log blocks) a worker;
        ``early_exit`` spares nothing more."""
        del early_exit
        return matches(self._index, PromptHashes.of(chain(sequence)), self._owners.__getitem__)

    def apply_event(self, worker_id: int, kv_cache_event_bytes: bytes) -> None:
        """Raises InvalidRequest for what is no event, and for one whose parent, or whose removed block, that rank does not have;
        the tree stays as it was."""
        try:
            event = self._decode(kv_cache_event_bytes)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise InvalidRequest(f"that is no KV cache event: {error}") from None
        owner = (worker_id, event.dp_rank)
        if isinstance(event.data, str):
            if event.data != "cleared":
                raise InvalidRequest(f"that is no KV cache event: its data is {event.data!r}")
            self.clear_all_blocks(worker_id)
        elif event.data.stored is not None:
            self._stored(owner, event.data.stored)
        elif event.data.removed is not None:
            self._removed(owner, event.data.removed.block_hashes)
        else:
            raise InvalidRequest("that is no KV cache event: its data is neither stored nor removed")

    def remove_worker(self, worker_id: int) -> None:
        for owner in [owner for owner in self._slots if owner[0] == worker_id]:
            slot = self._slots.pop(owner)
            self._index.close(slot)
            del self._owners[slot], self._blocks[owner]

    def clear_all_blocks(self, worker_id: int) -> None:
        """Of all its ranks."""
        self.remove_worker(worker_id)

    def dump_tree_as_events(self) -> list[str]:
        """One stored event a block, predecessors first; applied in order to another tree they make it this one."""
        events: list[str] = []
        for (worker_id, rank), blocks in self._blocks.items():
            for name, block in blocks.items():
                told = {"block_hash": name, "tokens_hash": block.tokens_hash, "mm_extra_info": None}
                stored = {"parent_hash": block.parent, "start_position": None, "blocks": [told]}
                event = {"event_id": len(events), "data": {"stored": stored}, "dp_rank": rank}
                events.append(_json({"worker_id": worker_id, "storage_tier": "device", "event": event}))
        return events

    def _stored(self, owner: tuple[int, int], stored: _Stored) -> None:
        known = self._blocks.get(owner, {})
        above = stored.parent_hash
        if above is not None and above not in known:
            raise InvalidRequest(f"worker {owner[0]}, rank {owner[1]}, has no block {above}, which is to be a parent")
        previous = None if above is None else known[above].seq_hash
        names = [block.block_hash for block in stored.blocks]
        if len(set(names)) != len(names):
            raise InvalidRequest("that is no KV cache event: it has one block_hash twice")
        try:
            hashes = chain((block.tokens_hash for block in stored.blocks), previous)
        except struct.error:
            raise InvalidRequest("that is no KV cache event: a tokens_hash is a number of 64 bits") from None
        if owner not in self._slots:
            slot = self._slots[owner] = self._index.open(_LIMIT)
            self._owners[slot] = owner
            known = self._blocks[owner] = {}
        self._forget(
            owner, [n for n, seq_hash in zip(names, hashes, strict=True) if n in known and known[n].seq_hash != seq_hash]
        )
        if above is not None and above not in known:
            return  # it followed a block whose name says something else from here on
        for block, seq_hash in zip(stored.blocks, hashes, strict=True):
            if block.block_hash not in known:
                known[block.block_hash] = _Block(block.tokens_hash, above, seq_hash)
                self._index.stored(self._slots[owner], (seq_hash,))
            above = block.block_hash

    def _removed(self, owner: tuple[int, int], names: Sequence[int]) -> None:
        known = self._blocks.get(owner, {})
        missing = next((name for name in names if name not in known), None)
        if missing is not None:
            raise InvalidRequest(f"worker {owner[0]}, rank {owner[1]}, has no block {missing}, which is to be removed")
        self._forget(owner, names)

    def _forget(self, owner: tuple[int, int], names: Sequence[int]) -> None:
        """These and, since nobody can find them any more, what follows them. O(blocks of the rank) a generation."""
        known = self._blocks[owner]
        gone = [known.pop(name) for name in dict.fromkeys(names) if name in known]
        orphans = set(names)
        while orphans and gone:
            orphans = {name for name, block in known.items() if block.parent in orphans}
            gone += [known.pop(name) for name in orphans]
        left = {block.seq_hash for block in known.values()} if gone else set()
        self._index.removed(self._slots[owner], [block.seq_hash for block in gone if block.seq_hash not in left])


def matches(index: PrefixIndex, prompt: PromptHashes, owner_of: Callable[[int], tuple[int, int]]) -> OverlapScores:
    """``owner_of``: a slot's worker and rank."""
    found = index.match(prompt)
    return OverlapScores({owner_of(slot): match.blocks for match in found for slot in slots_of(match.slots)})


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()
