"""Prompts that were sent and not yet computed: whoever follows with the same prefix will find it, though no event says so yet."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from itertools import islice
from typing import NamedTuple

from dynamo_core.kv import PromptHashes
from dynamo_kv_router.load import PlaceLoad

__all__ = ["PendingPrompts", "Promise"]

_CANDIDATES = 16
"""Latest prompts with the same first block that are compared; a shared system prompt would make it hundreds."""


class Promise(NamedTuple):
    place: PlaceLoad
    blocks: int


class _Prompt(NamedTuple):
    place: PlaceLoad
    prompt: PromptHashes


class PendingPrompts:
    def __init__(self) -> None:
        self._by_root: dict[int, dict[Hashable, _Prompt]] = {}

    def add(self, key: Hashable, place: PlaceLoad, prompt: PromptHashes) -> None:
        if prompt.count:
            self._by_root.setdefault(prompt.upto(1)[0], {})[key] = _Prompt(place, prompt)

    def discard(self, key: Hashable, prompt: PromptHashes) -> None:
        """Its first token came, or it ended otherwise. O(1); unknown ones are ignored."""
        if not prompt.count:
            return
        root = prompt.known[0]
        family = self._by_root.get(root)
        if family is not None and family.pop(key, None) is not None and not family:
            del self._by_root[root]

    def match(self, prompt: PromptHashes) -> Iterator[Promise]:
        """Blocks that workers will have in common with the prompt. O(log blocks) for each of the latest few candidates."""
        if not prompt.count:
            return
        family = self._by_root.get(prompt.upto(1)[0])
        if family:
            for sent in islice(reversed(family.values()), _CANDIDATES):
                yield Promise(sent.place, _common(prompt, sent.prompt))


def _common(one: PromptHashes, other: PromptHashes) -> int:
    """Leading blocks that are the same. Hashes are chained, so one equal block means that all before it are equal.

    Strides grow from what is hashed of any prompt, so that those of which only the beginning is common are not hashed for it.
    """
    low, high, far = 1, min(one.count, other.count), PromptHashes.AT_ONCE
    while low < high:
        far = min(far, high)
        if _at(one, far) != _at(other, far):
            high = far - 1
            break
        low, far = far, 2 * far
    while low < high:
        middle = (low + high + 1) // 2
        if _at(one, middle) == _at(other, middle):
            low = middle
        else:
            high = middle - 1
    return low


def _at(prompt: PromptHashes, count: int) -> int:
    return prompt.upto(count)[count - 1]
