"""What one slot of a :class:`~dynamo_core.kv.prefix_index.PrefixIndex` has, oldest first: for clearing it, and for bounding it.

That it has a block says the index's own dict, which both kinds ask. :class:`BlockLog` is for blocks that somebody tells of coming
and leaving and takes 8 to 12 bytes a block; :class:`BlockOrder` is for those that leave by age and takes about 80.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from itertools import chain, islice

__all__ = ["BlockLog", "BlockOrder"]


class BlockLog:
    """Roughly in the order of their coming: what is stored again stays where it is.

    Entries stand in buckets by the last bits of their names, in each in that order; up to 4,096 there is one bucket. A block that
    leaves stays in its bucket until that is swept, and one that came back in between stands there twice. Buckets are swept in
    turn, as fast as blocks come and go while a third of the entries is void, so that no change waits for all to be tidied up: a
    bucket of 64,000 blocks' takes 0.1 ms.
    """

    __slots__ = ("_bit", "_buckets", "_entries", "_next", "_owed", "_where", "limit", "size")

    _ONE, _BUCKETS = 4096, 128
    _LEAST = 16
    """Blocks that are taken from a bucket at once, so that going through it pays."""

    def __init__(self, limit: int, bit: int, where: Mapping[int, int]) -> None:
        self.limit = limit
        self.size = 0
        self._bit = bit
        self._where = where
        self._buckets: list[array[int] | list[int]] = [array("Q")]
        self._entries = self._owed = self._next = 0

    def __len__(self) -> int:
        """Entries, void ones among them."""
        return self._entries

    def add(self, run: Collection[int]) -> None:
        """Blocks that the slot did not have, and has by the index."""
        self._spread(run)
        self.size += len(run)
        self._changed(len(run))
        if self._entries > self._ONE and len(self._buckets) == 1:
            blocks, self._entries = self._live(0), 0
            self._buckets = [array("Q") for _ in range(self._BUCKETS)]
            self._spread(blocks)

    def discard(self, count: int) -> None:
        """So many are gone by the index."""
        self.size -= count
        self._changed(count)

    def oldest(self, count: int) -> list[int]:
        """About the first blocks, ``count`` at most, which are to leave. They are in the log no longer."""
        found: list[int] = []
        share = max(self._LEAST, -(-count // len(self._buckets))) if len(self._buckets) > 1 else count
        while len(found) < count and self._entries:
            at = self._turn()
            live = self._live(at)
            some = min(share, count - len(found))
            found += live[:some]
            self._put(at, live[some:])
        return found

    def drain(self) -> list[int]:
        """All, which are to leave, and perhaps some that have left. They are in the log no longer."""
        blocks = list(chain.from_iterable(self._buckets))
        self._buckets = [array("Q")]
        self._entries = self._owed = 0
        return blocks

    def _spread(self, run: Collection[int]) -> None:
        buckets, mask = self._buckets, len(self._buckets) - 1
        for block in run:
            try:
                buckets[block & mask].append(block)
            except OverflowError:  # no name that is ours, but no reason to fail
                buckets[block & mask] = [*buckets[block & mask], block]
        self._entries += len(run)

    def _live(self, at: int) -> list[int]:
        get, bit = self._where.get, self._bit
        return [block for block in dict.fromkeys(self._buckets[at]) if get(block, 0) & bit]

    def _put(self, at: int, blocks: list[int]) -> None:
        packed: array[int] | list[int] = array("Q")
        try:
            packed.extend(blocks)
        except OverflowError:
            packed = blocks
        self._entries += len(packed) - len(self._buckets[at])
        self._buckets[at] = packed

    def _turn(self) -> int:
        self._next = (self._next + 1) % len(self._buckets)
        return self._next

    def _changed(self, count: int) -> None:
        """Sweep two entries for each change, while that pays."""
        if self._entries <= 1.5 * self.size + self._ONE // 4:
            return
        self._owed += 2 * count
        while self._owed > 0:
            at = self._turn()
            self._owed -= len(self._buckets[at])
            self._put(at, self._live(at))
            if self._entries <= 1.5 * self.size + self._ONE // 4:
                self._owed = 0


class BlockOrder:
    """In the order in which they were last stored, each with the time at which it expires."""

    __slots__ = ("_owned", "limit")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._owned: OrderedDict[int, float] = OrderedDict()

    @property
    def size(self) -> int:
        return len(self._owned)

    def renew(self, run: Mapping[int, float]) -> None:
        """Blocks and their times."""
        owned = self._owned
        if not owned.keys().isdisjoint(run):
            for block in run:
                owned.pop(block, None)  # so that it becomes the latest
        owned.update(run)

    def discard(self, blocks: Sequence[int]) -> None:
        for block in blocks:
            self._owned.pop(block, None)

    def oldest(self, count: int) -> list[int]:
        return list(islice(self._owned, count))

    def due(self, now: float) -> list[int]:
        """What expires now or before. O(what does)."""
        gone: list[int] = []
        for block, expiry in self._owned.items():
            if expiry > now:
                break
            gone.append(block)
        return gone

    def drain(self) -> list[int]:
        """All, which are to leave."""
        blocks = list(self._owned)
        self._owned.clear()
        return blocks
