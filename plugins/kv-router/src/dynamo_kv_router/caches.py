"""What the router believes of the workers' caches: told by KV events, assumed where there are none, promised by what was sent."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Sequence
from math import inf
from typing import NamedTuple

from dynamo_core.contracts import KvBatch, KvCleared, KvRemoved, KvStored, RouteRequest, WorkerView
from dynamo_core.kv import PrefixIndex, PromptHashes, slots_of
from dynamo_kv_router.config import KvRouterConfig
from dynamo_kv_router.load import Pieces, PlaceLoad
from dynamo_kv_router.pending import PendingPrompts
from dynamo_kv_router.scarcity import Scarcity
from dynamo_kv_router.tiers import Beyond, SlowTiers

__all__ = ["Caches", "Overlap"]

_PIECE_TOKENS = 256
"""How finely it is seen what running requests have in common."""
_EXPIRY_EVERY_MS = 1000.0


class Overlap(NamedTuple):
    """By place."""

    blocks: list[int]
    """Leading blocks of the prompt that are there, or will be before the request could begin; in whatever tier."""
    new_tokens: list[int]
    """What is left to compute, blocks of slower tiers counted as the share of that which they cost; at least one token."""
    device: list[int]
    """Those of the blocks that are in the device's own memory."""
    most: int
    """The greatest of the blocks."""


class Caches:
    """Costs O(log blocks) a request and O(blocks named) an event."""

    def __init__(self, config: KvRouterConfig, block_size: int) -> None:
        self._config = config
        self._block_size = block_size
        self._index = PrefixIndex()
        self.scarcity = Scarcity()
        self._pending = PendingPrompts()
        self._prompts: dict[Hashable, PromptHashes] = {}
        self._owners: dict[int, PlaceLoad] = {}
        """Of each slot of the index: the place that has these blocks."""
        self._slots: dict[PlaceLoad, int] = {}
        self._assumed: dict[PlaceLoad, int] = {}
        """Places without KV events and the slot that says what they should have."""
        self._expire_at = 0.0
        self._assumed_ms = config.router_ttl_secs * 1000 if config.router_approximate_cache_policy == "ttl" else inf
        self._predicted_ms = config.router_predicted_ttl_secs * 1000
        self._predictions: deque[tuple[float, Hashable]] = deque()
        self._slow = SlowTiers(config.router_max_tree_size)

    def __len__(self) -> int:
        """Different blocks."""
        return len(self._index)

    def prompt(self, request: RouteRequest) -> PromptHashes:
        return PromptHashes(request.token_ids, self._block_size, lora=request.lora, salt=request.cache_salt)

    def overlap(self, prompt: PromptHashes, tokens: int, places: Sequence[PlaceLoad]) -> Overlap:
        """``places``: all there are, in the order of the books."""
        owners, size = self._owners, self._block_size
        blocks = [0] * len(places)
        rest = [tokens] * len(places)
        most = 0
        for match in self._index.match(prompt):
            most = match.blocks
            left = max(1, tokens - match.blocks * size)
            for slot in slots_of(match.slots):
                at = owners[slot].place
                blocks[at] = match.blocks
                rest[at] = left
        for promise in self._pending.match(prompt):
            at = promise.place.place
            if at < len(places) and places[at] is promise.place and promise.blocks > blocks[at]:
                blocks[at] = promise.blocks
                most = max(most, promise.blocks)
                rest[at] = max(1, tokens - promise.blocks * size)
        if not self._slow.held:
            return Overlap(blocks, rest, blocks, most)
        device = blocks.copy()
        for place in self._slow.held:
            at = place.place
            host, disk = self._slow.beyond(place, prompt, device[at])
            blocks[at] += host + disk
            saved = host * self._config.router_host_cache_hit_weight + disk * self._config.router_disk_cache_hit_weight
            rest[at] = max(1, rest[at] - round(saved * size))
        return Overlap(blocks, rest, device, max(blocks, default=0))

    def tiers(self, prompt: PromptHashes, places: Sequence[PlaceLoad]) -> list[tuple[int, int, int]]:
        """By place: leading blocks on the device, and further ones in the host's memory and on disk. What is only promised does
        not count."""
        device = [0] * len(places)
        for match in self._index.match(prompt):
            for slot in slots_of(match.slots):
                device[self._owners[slot].place] = match.blocks
        slow = self._slow
        none = Beyond(0, 0)
        further = [
            slow.beyond(place, prompt, blocks) if place in slow.held else none
            for place, blocks in zip(places, device, strict=True)
        ]
        return [(blocks, host, disk) for blocks, (host, disk) in zip(device, further, strict=True)]

    def pieces(self, prompt: PromptHashes) -> Pieces:
        """Of the part of it that somebody has. O(tokens ÷ 256)."""
        blocks = max(1, _PIECE_TOKENS // self._block_size)
        return Pieces(prompt.known[blocks - 1 :: blocks], blocks * self._block_size)

    # --- requests ------------------------------------------------------------------------------------------------------------

    def sent(self, key: Hashable, place: PlaceLoad, prompt: PromptHashes, now: float) -> None:
        """The prompt will be computed there."""
        self._prompts[key] = prompt
        self._pending.add(key, place, prompt)
        slot = self._assumed.get(place)
        if slot is not None:
            expiry = now + self._assumed_ms
            self._index.stored(slot, prompt.upto(prompt.count), expiry, keep=self._config.router_prune_target_ratio)

    def found(self, prompt: PromptHashes, overlap: Overlap) -> None:
        """The prompt was compared with all caches. Nothing is learned where they are only assumed."""
        if not self._assumed:
            self.scarcity.observe(prompt, overlap.most)

    def computed(self, key: Hashable, now: float) -> None:
        """Its first token came: from here on events say what there is, or a while later."""
        if self._predicted_ms and key in self._prompts:
            self._predictions.append((now + self._predicted_ms, key))
        else:
            self.forget(key)

    def forget(self, key: Hashable) -> None:
        """Promise nothing more for it. O(1); unknown ones are ignored."""
        prompt = self._prompts.pop(key, None)
        if prompt is not None:
            self._pending.discard(key, prompt)

    # --- workers -------------------------------------------------------------------------------------------------------------

    def add(self, worker: WorkerView, places: Sequence[PlaceLoad]) -> None:
        if self._config.use_kv_events and worker.card.kv_events:
            return
        most = self._config.router_max_tree_size
        for place in places:
            slot = self._index.open(min(most, worker.card.total_kv_blocks or most), expiring=True)
            self._assumed[place] = self._slots[place] = slot
            self._owners[slot] = place

    def remove(self, places: Sequence[PlaceLoad]) -> None:
        """O(1), and O(its blocks) where they are assumed or in slower tiers."""
        for place in places:
            self._assumed.pop(place, None)
            self._void(place)

    def _void(self, place: PlaceLoad) -> None:
        """It has nothing."""
        self._slow.clear(place)
        slot = self._slots.pop(place, None)
        if slot is not None:
            self._index.close(slot)
            del self._owners[slot]

    def listens(self, place: PlaceLoad) -> bool:
        """KV events say what it has."""
        return place not in self._assumed

    def size(self, place: PlaceLoad) -> int:
        """Its blocks."""
        slot = self._slots.get(place)
        return 0 if slot is None else self._index.size(slot)

    def known(self, place: PlaceLoad) -> tuple[KvStored, ...]:
        """Events that would make what is known of it anew."""
        slot = self._slots.get(place)
        device = () if slot is None else self._index.blocks(slot)[::-1]
        events = [KvStored(device)] if device else []
        return (*events, *(KvStored(blocks, tier) for tier, blocks in self._slow.blocks(place)))

    def take(self, batch: KvBatch, place: PlaceLoad) -> None:
        if place in self._assumed:
            return
        for event in batch.events:
            if isinstance(event, KvCleared):
                self._void(place)
            elif event.tier != "device":
                change = self._slow.stored if isinstance(event, KvStored) else self._slow.removed
                change(place, event.tier, event.seq_hashes)
            elif isinstance(event, KvStored):
                self._index.stored(self._slot(place), event.seq_hashes, keep=self._config.router_prune_target_ratio)
            elif isinstance(event, KvRemoved):
                self._index.removed(self._slot(place), event.seq_hashes)
                self.scarcity.evicted(event.seq_hashes)

    def lost(self, place: PlaceLoad) -> None:
        """Events were: what they said is void."""
        if place not in self._assumed:
            self._void(place)

    def _slot(self, place: PlaceLoad) -> int:
        slot = self._slots.get(place)
        if slot is None:
            slot = self._slots[place] = self._index.open(self._config.router_max_tree_size)
            self._owners[slot] = place
        return slot

    def expire(self, now: float) -> None:
        """Drop what is promised or assumed no longer; looks at the latter once a second."""
        while self._predictions and self._predictions[0][0] <= now:
            self.forget(self._predictions.popleft()[1])
        if now >= self._expire_at:
            self._expire_at = now + _EXPIRY_EVERY_MS
            for slot in self._assumed.values():
                self._index.expire(slot, now)
