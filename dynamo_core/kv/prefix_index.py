"""Which worker has which prefix in its cache.

One map from sequence hash to an integer whose bits are slots (a slot is one rank of one worker). A worker that has a block
nearly always has those before it, so the end of each worker's prefix is found by galloping: 64 workers and 256 blocks take a
dozen look-ups.

What one slot has is written down nowhere else. A slot that is closed counts no longer from that moment on, and its bit is taken
from the blocks little by little, while others come and go; until then it is not given to another slot.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import compress
from typing import NamedTuple

from dynamo_core.kv.block_map import new_block_map
from dynamo_core.kv.block_order import BlockOrder
from dynamo_core.kv.hashing import PromptHashes

__all__ = ["Match", "PrefixIndex", "slots_of"]

_LINEAR = PromptHashes.AT_ONCE
"""Blocks looked up one by one rather than by galloping or halving, which cost more a look-up. As many are hashed at once, and the
first stride ends where the first hashes do."""
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


class _Count:
    """A slot whose blocks somebody tells of coming and leaving."""

    __slots__ = ("limit", "size")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.size = 0


class PrefixIndex:
    """Changes cost O(blocks named), but for what ``stored`` and ``close`` say; memory is bounded by ``limit`` blocks a slot.

    A block takes 28 to 44 bytes (75 to 120 where nothing is compiled), however many slots have it; of an expiring slot some 120
    each on top.
    """

    _AT_ONCE = 4096
    """Blocks of an index that is so small that all are looked at when a slot is closed."""
    _FOR_EACH = 4
    """Blocks that are looked at for each that comes or goes, as long as bits of closed slots are left."""

    def __init__(self) -> None:
        self._where = new_block_map()
        self._slots: list[_Count | BlockOrder | None] = []
        self._bits: list[int] = []
        """By slot: the same object each time."""
        self._open = 0
        """The bits of the slots that are."""
        self._closed = self._waiting = 0
        """Bits of slots that were, as long as blocks may have them: those that are being swept, and those for the next sweep."""
        self._unswept: list[int] | None = None
        """The blocks that the sweep has not looked at; ``None`` before it begins."""

    def open(self, limit: int, *, expiring: bool = False) -> int:
        """A slot for one worker's rank. ``expiring``: nobody says when its blocks leave. They are stored with a time and leave by
        :meth:`expire`, and what is stored again becomes the latest; else the order is roughly that in which they came.
        """
        taken = self._open | self._closed | self._waiting
        slot = (~taken & (taken + 1)).bit_length() - 1
        self._slots += [None] * (slot + 1 - len(self._slots))
        self._bits += [1 << new for new in range(len(self._bits), slot + 1)]
        self._slots[slot] = BlockOrder(limit) if expiring else _Count(limit)
        self._open |= 1 << slot
        return slot

    def close(self, slot: int) -> None:
        """It has nothing from here on. O(its blocks) for an expiring one, else O(1); what is left to do the changes to come do,
        the first of which lists all blocks (10 ms a million)."""
        has, self._slots[slot] = self._slot(slot), None
        self._open &= ~(1 << slot)
        if isinstance(has, BlockOrder):
            self._take(self._bits[slot], has.drain())
        elif has.size:
            if self._unswept is None:
                self._closed |= 1 << slot
            else:
                self._waiting |= 1 << slot
        if not self._open or not len(self._where):
            self._where.clear()
            self._closed, self._waiting, self._unswept = 0, 0, None
        while self._closed and len(self._where) <= self._AT_ONCE:
            self._sweep(self._AT_ONCE)

    def size(self, slot: int) -> int:
        """Blocks of the slot."""
        return self._slot(slot).size

    def blocks(self, slot: int) -> tuple[int, ...]:
        """The slot's, a prefix's last ones first where nobody else told of them before. O(all blocks)."""
        return tuple(self._where.hashes(1 << slot))

    def __len__(self) -> int:
        """Different blocks of all slots, and some of closed ones."""
        return len(self._where)

    def stored(self, slot: int, seq_hashes: Sequence[int], expiry: float = 0.0, *, keep: float = 0.8) -> None:
        """The slot has these (again), given in chain order and noted from the last, so that a prefix outlives what builds on it.

        Beyond the slot's limit some go until the share ``keep`` of it is left: of an expiring slot the oldest, else those first
        that nobody else has, by their age. Looking for these is O(all blocks), hence at most 0.95 is left.
        """
        has, bit, run = self._slot(slot), self._bits[slot], seq_hashes[::-1]
        new = self._where.add(bit, run)
        if isinstance(has, _Count):
            has.size += new
        else:
            has.renew(dict.fromkeys(run, expiry))
        if self._closed:
            self._sweep(self._FOR_EACH * len(run))
        if has.size > has.limit:
            if isinstance(has, _Count):
                self.removed(slot, self._dispensable(bit, has.size - int(has.limit * min(keep, 0.95))))
            else:
                self.removed(slot, has.oldest(has.size - int(has.limit * keep)))

    def removed(self, slot: int, seq_hashes: Sequence[int]) -> None:
        """The slot has these no longer; unknown ones are ignored."""
        has = self._slot(slot)
        gone = self._take(self._bits[slot], seq_hashes)
        if isinstance(has, _Count):
            has.size -= gone
        elif gone:
            has.discard(seq_hashes)
        if self._closed:
            self._sweep(self._FOR_EACH * len(seq_hashes))

    def expire(self, slot: int, now: float) -> None:
        """Drop what was stored with an expiry of ``now`` or before. O(what goes)."""
        has = self._slot(slot)
        if isinstance(has, BlockOrder):
            self.removed(slot, has.due(now))

    def match(self, prompt: PromptHashes) -> list[Match]:
        """How many leading blocks each slot has, fewest first; slots without any are left out.

        Exact as long as no slot lacks a block before one that it has; where one does, the answer ends at one of its holes.
        """
        get, count = self._where.get, prompt.count
        matches: list[Match] = []
        hashes = prompt.upto(1)
        alive = get(hashes[0]) & self._open if count else 0
        at, step = 1, _LINEAR - 1
        while alive and at < count:
            far = min(at + step, count)
            if far > len(hashes):
                prompt.upto(far)
            if get(hashes[far - 1]) & alive == alive:
                at, step = far, 2 * step
                continue
            while far - at > _LINEAR:
                middle = (at + far) // 2
                if get(hashes[middle - 1]) & alive == alive:
                    at = middle
                else:
                    far = middle
            for position in range(at, far):
                held = get(hashes[position]) & alive
                if held != alive:
                    matches.append(Match(alive & ~held, position))
                    alive = held
                    if not alive:
                        return matches
            at, step = far, _LINEAR
        if alive:
            matches.append(Match(alive, at))
        return matches

    def _take(self, bit: int, seq_hashes: Sequence[int]) -> int:
        """The bit from these blocks. Returns how many had it."""
        return self._where.take(bit, seq_hashes, self._open & ~bit)

    def _dispensable(self, bit: int, count: int) -> list[int]:
        """Of a slot: the oldest that nobody else has, then the oldest of the others, since it is prefixes that many have."""
        return self._where.dispensable(bit, self._open & ~bit, count)

    def _sweep(self, count: int) -> None:
        """Look at so many of the blocks that may have a closed slot's bit. A sweep that has begun is ended before the next."""
        if self._unswept is None:
            self._unswept = self._where.hashes()
        unswept, first = self._unswept, max(0, len(self._unswept) - count)
        self._where.take(self._closed, unswept[first:], ~self._closed)
        del unswept[first:]
        if not first:
            self._closed, self._waiting, self._unswept = self._waiting, 0, None

    def _slot(self, slot: int) -> _Count | BlockOrder:
        has = self._slots[slot]
        if has is None:
            raise KeyError(slot)
        return has
