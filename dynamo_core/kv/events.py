"""vLLM's KV events, translated into ours.

vLLM publishes msgpack batches ``[ts, events, data_parallel_rank?]`` on a ZMQ socket. Two dialects are in use: events as arrays
(``["BlockStored", …]``, older) and as maps (``{"type": "BlockStored", …}``, newer); block hashes are integers or bytes, and
private to the engine. A batch carries the token ids, so blocks are named anew with :mod:`dynamo_core.kv.hashing`, and the
engine's hashes serve to find a parent and what is removed.

What else has to be put right on the way:

* A model with several kinds of attention sends every block once for each group of layers; one group is kept.
* vLLM keeps blocks that were computed twice, and tells of each copy: a block is removed with its last copy.
* Adapters and cache salts go into the seed as a router hashes them. Other extra keys (images, prompt embeddings) go into the
  block's hash, where no router finds them: such blocks are never taken for others.
* An event that is none of the known ones, or not made as it should be, voids what is known: the cache counts as cleared.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec
from xxhash import xxh3_64_intdigest

from dynamo_core.contracts import KvCleared, KvEvent, KvRemoved, KvStored
from dynamo_core.kv.hashing import block_hash, chain, hash_seed

__all__ = ["VllmEventTranslator"]

_STORED = (
    "block_hashes", "parent_block_hash", "token_ids", "block_size", "lora_id", "medium", "lora_name", "extra_keys", "group_idx",
    "kv_cache_spec_kind",
)  # fmt: skip
_REMOVED = ("block_hashes", "medium", "group_idx")
_TIERS = {None: "device", "GPU": "device", "CPU": "host", "STORAGE": "disk", "DISK": "disk"}
_WHOLE_PREFIX = frozenset({"full_attention", "mla_attention", "sink_full_attention", "unknown"})
"""Kinds of attention whose blocks cover the whole prefix; the others drop blocks that a router would still count on."""


class _UnknownError(Exception):
    """Not an event that this translator understands."""


class _Block:
    """What is known of one of the engine's hashes."""

    __slots__ = ("copies", "seed", "seq_hash")

    def __init__(self, seq_hash: int, seed: int) -> None:
        self.seq_hash = seq_hash
        self.seed = seed
        self.copies: dict[str, int] = {}
        """By tier."""


class VllmEventTranslator:
    """For one publisher, that is one data-parallel rank. Feed it every batch in order; after a loss call :meth:`reset`.

    ``main_group`` is the group of layers whose blocks are kept; without it the first group that the events call full
    attention, or group 0 when they call it nothing. Memory grows with the blocks in the engine's cache, no further.
    """

    def __init__(self, block_size: int, *, main_group: int | None = None) -> None:
        self.block_size = block_size
        self.skipped = 0
        """Stored blocks that could not be named: their parent is unknown, or they are not full blocks."""
        self.unknown = 0
        """Events and batches that were not understood, each of which voided what was known."""
        self._group = main_group
        self._blocks: dict[Any, _Block] = {}
        self._copies: dict[tuple[int, str], int] = {}
        self._decode = msgspec.msgpack.Decoder().decode

    def translate(self, payload: bytes) -> list[KvEvent]:
        """Our events for one batch, in order. Raises nothing, whatever the bytes."""
        try:
            batch = self._decode(payload)
            events = batch["events"] if isinstance(batch, dict) else batch[1]
        except (ValueError, LookupError, TypeError):  # UnicodeDecodeError is no DecodeError
            self.unknown += 1
            return self.reset()
        out: list[KvEvent] = []
        for event in events if isinstance(events, list) else (None,):
            try:
                self._event(event, out)
            except (_UnknownError, LookupError, TypeError, ValueError, OverflowError):
                self.unknown += 1
                out += self.reset()
        return out

    def reset(self) -> list[KvEvent]:
        """Batches were lost, or the cache was dropped: nothing is stored as far as we know."""
        self._copies.clear()
        self._blocks.clear()
        return [KvCleared()]

    def _event(self, event: Any, out: list[KvEvent]) -> None:
        tag: Any
        fields: Mapping[str, Any]
        if isinstance(event, dict):
            tag, fields = event.get("type"), event
        elif isinstance(event, list) and event:
            tag = event[0]
            names: tuple[str, ...] = _STORED if tag == "BlockStored" else _REMOVED if tag == "BlockRemoved" else ()
            fields = dict(zip(names, event[1:], strict=False))
        else:
            raise _UnknownError
        if tag == "BlockStored":
            if self._is_main(fields.get("group_idx"), fields.get("kv_cache_spec_kind")):
                self._stored(fields, out)
        elif tag == "BlockRemoved":
            if self._is_main(fields.get("group_idx"), None):
                self._removed(fields["block_hashes"], _tier(fields.get("medium")), out)
        elif tag == "AllBlocksCleared":
            out += self.reset()
        else:
            raise _UnknownError

    def _is_main(self, group: int | None, kind: str | None) -> bool:
        if group is None:
            return kind is None or kind in _WHOLE_PREFIX
        if self._group is None and kind in _WHOLE_PREFIX:
            self._group = group
        return group == (0 if self._group is None and kind is None else self._group)

    def _stored(self, fields: Mapping[str, Any], out: list[KvEvent]) -> None:
        hashes: Sequence[Any] = fields["block_hashes"]
        tier = _tier(fields.get("medium"))
        run: list[int] = []
        for engine_hash, block in zip(hashes, self._name(fields, hashes), strict=False):
            if block is None:
                self.skipped += 1
                continue
            self._blocks[engine_hash] = block
            block.copies[tier] = block.copies.get(tier, 0) + 1
            key = (block.seq_hash, tier)
            copies = self._copies[key] = self._copies.get(key, 0) + 1
            if copies == 1:
                run.append(block.seq_hash)
            elif run:
                out.append(KvStored(tuple(run), tier))
                run = []
        if run:
            out.append(KvStored(tuple(run), tier))

    def _name(self, fields: Mapping[str, Any], hashes: Sequence[Any]) -> Iterable[_Block | None]:
        """One block a hash, known or made; ``None`` from the first on that cannot be named."""
        parent_hash = fields.get("parent_block_hash")
        parent = self._blocks.get(parent_hash) if parent_hash is not None else None
        size = self.block_size
        tokens: Sequence[int] = fields.get("token_ids") or ()
        complete = fields.get("block_size") == size and len(tokens) == size * len(hashes)
        nameable = complete and (parent_hash is None or parent is not None)
        keys = fields.get("extra_keys") or ()
        lora = _lora(fields)
        seed = parent.seed if parent is not None else 0
        previous = parent.seq_hash if parent is not None else None
        for i, engine_hash in enumerate(hashes):
            block = self._blocks.get(engine_hash)
            if block is None and nameable:
                extra = list(keys[i] or ()) if i < len(keys) else []
                if lora in extra:
                    extra.remove(lora)
                if previous is None:
                    salt = next((key for key in extra if isinstance(key, str)), None)
                    if salt is not None:
                        extra.remove(salt)
                    seed = hash_seed(lora, salt)
                content = block_hash(tokens[i * size : (i + 1) * size], seed)
                if extra:
                    content = xxh3_64_intdigest(msgspec.msgpack.encode(extra), content)
                block = _Block(chain((content,), previous)[0], seed)
            if block is not None:
                previous, seed = block.seq_hash, block.seed
            else:
                nameable = False
            yield block

    def _removed(self, hashes: Sequence[Any], tier: str, out: list[KvEvent]) -> None:
        gone: list[int] = []
        for engine_hash in hashes:
            block = self._blocks.get(engine_hash)
            if block is None or not block.copies.get(tier):
                continue
            block.copies[tier] -= 1
            if not any(block.copies.values()):
                del self._blocks[engine_hash]
            key = (block.seq_hash, tier)
            self._copies[key] -= 1
            if not self._copies[key]:
                del self._copies[key]
                gone.append(block.seq_hash)
        if gone:
            out.append(KvRemoved(tuple(gone), tier))


def _tier(medium: Any) -> str:
    if medium is not None and not isinstance(medium, str):
        raise _UnknownError
    return _TIERS.get(medium) or str(medium).lower()


def _lora(fields: Mapping[str, Any]) -> str | None:
    """The adapter's name; older engines give a number alone, which keeps adapters apart and matches no request."""
    name = fields.get("lora_name")
    if name:
        return str(name)
    number = fields.get("lora_id")
    return None if number is None else f"\0{number}"
