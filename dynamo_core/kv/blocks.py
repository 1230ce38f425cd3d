"""The paged KV cache of a simulated engine: reference counts, prefix reuse, LRU eviction and the events that tell of it.

A block is an index. It is *active* while sequences hold it, else it waits in the LRU queue, where its content stays reusable
until the block is taken for something else. Released sequences queue their last block first: a prefix outlives what builds on it.
A block without reusable content, such as an incomplete last one, does not wait at all: it is the next to be taken.
A block that is computed twice is kept twice; events speak of the first copy stored and the last one evicted.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence

from dynamo_core.contracts import KvCleared, KvEvent, KvRemoved, KvStored

__all__ = ["BlockManager"]


class BlockManager:
    """Owned by one scheduler; not thread-safe. Every method costs O(blocks named), none depends on the size of the cache."""

    def __init__(self, total: int, *, caching: bool = True, events: bool = True) -> None:
        self.total = total
        self.caching = caching
        self._tell = events and caching
        self._events: list[KvEvent] = []
        self._references = [0] * total
        self._name: list[int | None] = [None] * total
        self._queue: OrderedDict[int, None] = OrderedDict.fromkeys(range(total))
        self._copies: dict[int, dict[int, None]] = {}

    @property
    def free(self) -> int:
        """Blocks that no sequence holds; reusable content may be in them."""
        return len(self._queue)

    @property
    def used(self) -> int:
        return self.total - len(self._queue)

    def match(self, seq_hashes: Sequence[int]) -> list[int]:
        """The cached blocks of the longest known prefix, not yet held."""
        if not self.caching:
            return []
        copies = self._copies
        found: list[int] = []
        for seq_hash in seq_hashes:
            known = copies.get(seq_hash)
            if known is None:
                break
            found.append(next(iter(known)))
        return found

    def available(self, beside: Iterable[int] = ()) -> int:
        """How many blocks could be allocated once those of ``beside`` (a match) are held."""
        return len(self._queue) - sum(1 for block in beside if not self._references[block])

    def hold(self, blocks: Iterable[int]) -> None:
        """One more sequence uses these."""
        references, queue = self._references, self._queue
        for block in blocks:
            if not references[block]:
                del queue[block]
            references[block] += 1

    def allocate(self, count: int) -> list[int]:
        """Take the ``count`` least recently used blocks, which the caller then holds. Check :meth:`available` first."""
        queue, references, names = self._queue, self._references, self._name
        blocks: list[int] = []
        gone: list[int] = []
        for _ in range(count):
            block = queue.popitem(last=False)[0]
            if names[block] is not None and self._forget(block):
                gone.append(names[block])  # type: ignore[arg-type]  # just tested
            names[block] = None
            references[block] = 1
            blocks.append(block)
        if gone and self._tell:
            self._events.append(KvRemoved(tuple(gone)))
        return blocks

    def store(self, blocks: Sequence[int], seq_hashes: Sequence[int]) -> None:
        """The held blocks have (or will have, when this step ends) the content of these names: successors of one another."""
        if not self.caching:
            return
        run: list[int] = []
        for block, seq_hash in zip(blocks, seq_hashes, strict=True):
            self._name[block] = seq_hash
            copies = self._copies.get(seq_hash)
            if copies is None:
                self._copies[seq_hash] = {block: None}
                run.append(seq_hash)
            else:
                copies[block] = None
                self._told(run)
                run = []
        self._told(run)

    def release(self, blocks: Sequence[int]) -> None:
        """One sequence less uses these (given in chain order); the last is the first to be evicted."""
        references, queue, names = self._references, self._queue, self._name
        for block in reversed(blocks):
            references[block] -= 1
            if not references[block]:
                queue[block] = None
                if names[block] is None:
                    queue.move_to_end(block, last=False)

    def clear(self) -> None:
        """Forget all reusable content; what sequences hold stays theirs."""
        self._copies.clear()
        self._name = [None] * self.total
        if self._tell:
            self._events.append(KvCleared())

    def take_events(self) -> list[KvEvent]:
        """What changed since the last call, in order."""
        events, self._events = self._events, []
        return events

    def _told(self, run: list[int]) -> None:
        if run and self._tell:
            self._events.append(KvStored(tuple(run)))

    def _forget(self, block: int) -> bool:
        """Take the block from the copies of its name; True if it was the last."""
        seq_hash = self._name[block]
        assert seq_hash is not None  # noqa: S101  # the caller asked
        copies = self._copies[seq_hash]
        del copies[block]
        if copies:
            return False
        del self._copies[seq_hash]
        return True
