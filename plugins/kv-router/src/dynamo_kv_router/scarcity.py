"""How scarce room in the caches is: what of the prompts was there once and has been evicted, of all that could have been found.

Sending a prompt where it is cached saves more than the time to compute it: computed elsewhere, it would push other blocks out.
That counts for nothing where caches hold all that comes again.
"""

from __future__ import annotations

from collections.abc import Sequence

from dynamo_core.kv import PromptHashes

__all__ = ["Scarcity"]

_MEMORY = 0.998
"""Weight of a request after the next one: the last five hundred count."""
_PRIOR = 4.0
"""Blocks that count as evicted before anything was seen: caches are taken to be scarce until they prove not to be."""
_LIMIT = 1 << 17
"""Evicted blocks remembered."""


class Scarcity:
    """Two generations of evicted blocks: when the younger is full, the older is forgotten."""

    def __init__(self) -> None:
        self.share = 1.0
        """From 0, nothing that was asked for had been evicted, to 1."""
        self._young: set[int] = set()
        self._old: set[int] = set()
        self._found = 0.0
        self._gone = _PRIOR

    def evicted(self, seq_hashes: Sequence[int]) -> None:
        self._young.update(seq_hashes)
        if len(self._young) > _LIMIT // 2:
            self._old, self._young = self._young, set()

    def observe(self, prompt: PromptHashes, found: int) -> None:
        """A prompt of which the best place has so many leading blocks. O(1), but for one that was evicted: O(log blocks)."""
        at, step = found, 1
        while at < prompt.count:
            far = min(at + step, prompt.count)
            last = prompt.upto(far)[far - 1]
            if last not in self._young and last not in self._old:
                break
            at, step = far, 2 * step
        self._found = self._found * _MEMORY + found
        self._gone = self._gone * _MEMORY + at - found
        total = self._found + self._gone
        self.share = self._gone / total if total else 1.0
