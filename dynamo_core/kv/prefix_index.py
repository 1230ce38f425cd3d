"""Which worker has which prefix in its cache.

One dict from sequence hash to an integer whose bits are slots (a slot is one rank of one worker), and for each slot what it owns,
so that it can be cleared in time proportional to that. A worker that has a block nearly always has those before it, so the
end of each worker's prefix is found by galloping: 64 workers and 256 blocks take a dozen look-ups, not 256.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from itertools import compress, islice
from typing import NamedTuple

from dynamo_core.kv.hashing import PromptHashes

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
    """Every change costs O(blocks named); memory is bounded by ``limit`` blocks a slot."""

    def __init__(self) -> None:
        self._where: dict[int, int] = {}
        self._owned: list[dict[int, float] | None] = []
        self._limit: list[int] = []

    def open(self, limit: int, *, expiring: bool = False) -> int:
        """A slot for one worker's rank. ``expiring``: blocks are stored with a time and leave by :meth:`expire`."""
        owned: dict[int, float] = OrderedDict() if expiring else {}
        for slot, taken in enumerate(self._owned):
            if taken is None:
                self._owned[slot], self._limit[slot] = owned, limit
                return slot
        self._owned.append(owned)
        self._limit.append(limit)
        return len(self._owned) - 1

    def close(self, slot: int) -> None:
        self.clear(slot)
        self._owned[slot] = None

    def size(self, slot: int) -> int:
        """Blocks of the slot."""
        return len(self._blocks(slot))

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
        owned, where, bit = self._blocks(slot), self._where, 1 << slot
        run = dict.fromkeys(reversed(seq_hashes), expiry)
        if not owned.keys().isdisjoint(run):
            for seq_hash in run:
                owned.pop(seq_hash, None)  # so that it becomes the latest
        owned.update(run)
        if where.keys().isdisjoint(run):
            where.update(dict.fromkeys(run, bit))
        else:
            for seq_hash in run:
                where[seq_hash] = where.get(seq_hash, 0) | bit
        if len(owned) > self._limit[slot]:
            excess = len(owned) - int(self._limit[slot] * keep)
            self.removed(slot, list(islice(owned, excess)))

    def removed(self, slot: int, seq_hashes: Iterable[int]) -> None:
        """The slot has these no longer; unknown ones are ignored."""
        owned, where, bit = self._blocks(slot), self._where, 1 << slot
        for seq_hash in seq_hashes:
            if owned.pop(seq_hash, None) is not None:
                left = where[seq_hash] & ~bit
                if left:
                    where[seq_hash] = left
                else:
                    del where[seq_hash]

    def expire(self, slot: int, now: float) -> None:
        """Drop what was stored with an expiry of ``now`` or before. O(what goes)."""
        owned = self._blocks(slot)
        gone: list[int] = []
        for seq_hash, expiry in owned.items():
            if expiry > now:
                break
            gone.append(seq_hash)
        self.removed(slot, gone)

    def clear(self, slot: int) -> None:
        self.removed(slot, list(self._blocks(slot)))

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

    def _blocks(self, slot: int) -> dict[int, float]:
        owned = self._owned[slot]
        if owned is None:
            raise KeyError(slot)
        return owned
