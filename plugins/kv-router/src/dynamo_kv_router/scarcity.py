"""How scarce room in the caches is: what of the prompts was there once and has been evicted, of all that could have been found.

Sending a prompt where it is cached saves more than the time to compute it: computed elsewhere, it would push other blocks out.
That counts for nothing where caches hold all that comes again.
"""

from __future__ import annotations

from collections.abc import Sequence

from dynamo_core.kv import BlockMap, PromptHashes, multiples, new_block_map

__all__ = ["Scarcity"]

_MEMORY = 0.998
"""Weight of a request after the next one: the last five hundred count."""
_PRIOR = 4.0
"""Blocks that count as evicted before anything was seen: caches are taken to be scarce until they prove not to be."""
_LIMIT = 1 << 17
"""Evicted blocks remembered."""
_SAMPLE = 8
"""One of so many blocks stands for all, by its hash: whole caches go by here, and remembering each block of theirs costs as much
as the index itself."""


class Scarcity:
    """Two generations of evicted blocks: when the younger is full, the older is forgotten."""

    def __init__(self) -> None:
        self.share = 1.0
        """From 0, nothing that was asked for had been evicted, to 1."""
        self._young: BlockMap = new_block_map()
        self._old: BlockMap = new_block_map()
        self._found = 0.0
        self._gone = _PRIOR

    def evicted(self, seq_hashes: Sequence[int]) -> None:
        self._young.add(1, multiples(seq_hashes, _SAMPLE))
        if len(self._young) > _LIMIT // _SAMPLE // 2:
            self._old, self._young = self._young, new_block_map()

    def observe(self, prompt: PromptHashes, found: int) -> None:
        """A prompt of which the best place has so many leading blocks. O(1), but for one that was evicted: O(its blocks)."""
        gone = _SAMPLE * self._leading(prompt, found) if len(self._young) or len(self._old) else 0
        self._found = self._found * _MEMORY + found
        self._gone = self._gone * _MEMORY + gone
        total = self._found + self._gone
        self.share = self._gone / total if total else 1.0

    def _leading(self, prompt: PromptHashes, start: int) -> int:
        """How many sampled blocks from ``start`` on were evicted, up to one that was not."""
        count, step = 0, _SAMPLE
        while start < prompt.count:
            known = prompt.upto(start + step)
            for seq_hash in known[start:]:
                if not seq_hash % _SAMPLE:
                    if not self._young.get(seq_hash) and not self._old.get(seq_hash):
                        return count
                    count += 1
            start, step = len(known), 2 * step
        return count
