"""What an expiring slot of a :class:`~dynamo_core.kv.prefix_index.PrefixIndex` has, oldest first. About 80 bytes a block."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from itertools import islice

__all__ = ["BlockOrder"]


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
