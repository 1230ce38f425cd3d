"""What workers have in slower tiers than their device's memory: blocks that continue a prefix where the device's end."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import NamedTuple

from dynamo_core.kv import PromptHashes
from dynamo_kv_router.load import PlaceLoad

__all__ = ["Beyond", "SlowTiers"]


class Beyond(NamedTuple):
    """Blocks that follow those on the device."""

    host: int
    disk: int


class SlowTiers:
    """Per place and tier the hashes of its blocks, oldest first. Empty, and free of cost, where no engine offloads."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        """Blocks of one place and tier."""
        self.held: dict[PlaceLoad, dict[str, dict[int, None]]] = {}

    def stored(self, place: PlaceLoad, tier: str, seq_hashes: Iterable[int]) -> None:
        blocks = self.held.setdefault(place, {}).setdefault(tier, {})
        for seq_hash in seq_hashes:
            blocks.pop(seq_hash, None)
            blocks[seq_hash] = None
        for seq_hash in list(islice(blocks, max(0, len(blocks) - self._limit))):
            del blocks[seq_hash]

    def removed(self, place: PlaceLoad, tier: str, seq_hashes: Iterable[int]) -> None:
        blocks = self.held.get(place, {}).get(tier, {})
        for seq_hash in seq_hashes:
            blocks.pop(seq_hash, None)

    def clear(self, place: PlaceLoad) -> None:
        self.held.pop(place, None)

    def blocks(self, place: PlaceLoad) -> Iterator[tuple[str, tuple[int, ...]]]:
        """By tier, oldest first."""
        return ((tier, tuple(blocks)) for tier, blocks in self.held.get(place, {}).items() if blocks)

    def beyond(self, place: PlaceLoad, prompt: PromptHashes, start: int) -> Beyond:
        """``start``: leading blocks on the device. O(log blocks): a tier nearly always has what comes before what it has."""
        tiers = self.held[place]
        host = tiers.get("host", {})
        after_host = _reach(prompt, start, (host,))
        disk = [blocks for tier, blocks in tiers.items() if tier != "host"]
        after_disk = _reach(prompt, after_host, (host, *disk)) if disk else after_host
        return Beyond(after_host - start, after_disk - after_host)


def _reach(prompt: PromptHashes, start: int, tiers: Iterable[Mapping[int, None]]) -> int:
    """How many leading blocks there are when those from ``start`` on may be in any of the tiers."""

    def has(position: int) -> bool:
        seq_hash = prompt.upto(position + 1)[position]
        return any(seq_hash in blocks for blocks in tiers)

    known, step = start, 1
    while known < prompt.count:
        far = min(known + step, prompt.count)
        if not has(far - 1):
            break
        known, step = far, 2 * step
    else:
        return known
    while far - known > 1:
        middle = (known + far) // 2
        if has(middle - 1):
            known = middle
        else:
            far = middle
    return known
