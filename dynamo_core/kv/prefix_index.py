"""Which worker has which prefix in its cache.

One dict from sequence hash to an integer whose bits are slots (a slot is one rank of one worker), and for each slot in which
order it got what it has, so that it can be cleared in time proportional to that. A worker that has a block nearly always has
those before it, so the end of each worker's prefix is found by galloping: 64 workers and 256 blocks take a dozen look-ups.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from itertools import compress
from typing import NamedTuple

from dynamo_core.kv.hashing import PromptHashes
from dynamo_core.kv.holdings import BlockLog, BlockOrder

__all__ = ["Match", "PrefixIndex", "slots_of"]

_LINEAR = 16
"""Blocks that are looked up one by one rather than by galloping or halving, which cost more a look-up."""
_BITS = bytes.maketrans(b"01", b"\0\1")


class Match(NamedTuple):
    """Slots (as bits) that have the same number of leading blocks."""

    slots: int
    blocks: int


def slots_of(bits: int) -> Iterable[int]:
    """The set bits, lowest first."""
    if not bits & (bits - 1):
        return (bits.bit_length() - 1,)
    flags = f"{bits:b}".encode().translate(_BITS)[::-1]
    return compress(range(len(flags)), flags)


class PrefixIndex:
    """Every change costs O(blocks named); memory is bounded by ``limit`` blocks a slot.

    A block that 8 slots have takes about 150 bytes, one that a single slot has about 90; of an expiring slot 80 each on top.
    """

    def __init__(self) -> None:
        self._where: dict[int, int] = {}
        self._slots: list[BlockLog | BlockOrder | None] = []

    def open(self, limit: int, *, expiring: bool = False) -> int:
        """A slot for one worker's rank. ``expiring``: nobody says when its blocks leave. They are stored with a time and leave by
        :meth:`expire`, and what is stored again becomes the latest; else the order is that in which they came.
        """
        slot = self._slots.index(None) if None in self._slots else len(self._slots)
        self._slots[slot : slot + 1] = [BlockOrder(limit) if expiring else BlockLog(limit, 1 << slot, self._where)]
        return slot

    def close(self, slot: int) -> None:
        self.clear(slot)
        self._slots[slot] = None

    def size(self, slot: int) -> int:
        """Blocks of the slot."""
        return self._slot(slot).size

    def blocks(self, slot: int) -> tuple[int, ...]:
        """The slot's, a prefix's last ones first where nobody else told of them before. O(all blocks)."""
        bit = 1 << slot
        return tuple(seq_hash for seq_hash, owners in self._where.items() if owners & bit)

    def __len__(self) -> int:
        """Different blocks of all slots."""
        return len(self._where)

    def stored(self, slot: int, seq_hashes: Sequence[int], expiry: float = 0.0, *, keep: float = 0.8) -> None:
        """The slot has these (again), given in chain order and noted from the last, so that a prefix outlives what builds on it.

        Beyond the slot's limit the oldest go until the share ``keep`` of it is left.
        """
        has, where, bit = self._slot(slot), self._where, 1 << slot
        run = dict.fromkeys(reversed(seq_hashes), bit)
        if where.keys().isdisjoint(run):
            where.update(run)
            new: Collection[int] = run
        else:
            new = fresh = list[int]()
            before, after = 0, bit  # the blocks of a run nearly always have the same owners: one integer for all of them
            for seq_hash in run:
                owners = where.get(seq_hash, 0)
                if not owners & bit:
                    if owners is not before:
                        before, after = owners, owners | bit
                    where[seq_hash] = after
                    fresh.append(seq_hash)
        if isinstance(has, BlockLog):
            has.add(new)
        else:
            has.renew(dict.fromkeys(run, expiry))
        if has.size > has.limit:
            target = int(has.limit * keep)
            while has.size > target:
                self.removed(slot, has.oldest(has.size - target))

    def removed(self, slot: int, seq_hashes: Sequence[int]) -> None:
        """The slot has these no longer; unknown ones are ignored."""
        has, where, bit = self._slot(slot), self._where, 1 << slot
        gone, before, after = 0, 0, 0
        for seq_hash in seq_hashes:
            owners = where.get(seq_hash, 0)
            if owners & bit:
                gone += 1
                if owners == bit:
                    del where[seq_hash]
                else:
                    if owners is not before:
                        before, after = owners, owners & ~bit
                    where[seq_hash] = after
        if isinstance(has, BlockLog):
            has.discard(gone)
        elif gone:
            has.discard(seq_hashes)

    def expire(self, slot: int, now: float) -> None:
        """Drop what was stored with an expiry of ``now`` or before. O(what goes)."""
        has = self._slot(slot)
        if isinstance(has, BlockOrder):
            self.removed(slot, has.due(now))

    def clear(self, slot: int) -> None:
        self.removed(slot, self._slot(slot).drain())

    def match(self, prompt: PromptHashes) -> list[Match]:
        """How many leading blocks each slot has, fewest first; slots without any are left out.

        Exact as long as no slot lacks a block before one that it has; where one does, the answer ends at one of its holes.
        """
        get, count = self._where.get, prompt.count
        matches: list[Match] = []
        hashes = prompt.upto(1)
        alive = get(hashes[0], 0) if count else 0
        at, step = 1, _LINEAR
        while alive and at < count:
            far = min(at + step, count)
            if far > len(hashes):
                prompt.upto(far)
            if get(hashes[far - 1], 0) & alive == alive:
                at, step = far, 2 * step
                continue
            while far - at > _LINEAR:
                middle = (at + far) // 2
                if get(hashes[middle - 1], 0) & alive == alive:
                    at = middle
                else:
                    far = middle
            for position in range(at, far):
                held = get(hashes[position], 0) & alive
                if held != alive:
                    matches.append(Match(alive & ~held, position))
                    alive = held
                    if not alive:
                        return matches
            at, step = far, _LINEAR
        if alive:
            matches.append(Match(alive, at))
        return matches

    def _slot(self, slot: int) -> BlockLog | BlockOrder:
        has = self._slots[slot]
        if has is None:
            raise KeyError(slot)
        return has
