"""What a worker tells routers about its KV cache.

Blocks are named by their *sequence hash*: ``seq[0] = block[0]``, ``seq[i] = xxh3_64(seq[i-1] ‖ block[i], seed 1337)`` with
``block = xxh3_64(little-endian u32 tokens, seed 1337)`` (see :mod:`dynamo_core.kv.hashing`). An engine that names its blocks
otherwise translates before publishing (:mod:`dynamo_core.kv.events` does it for vLLM's dialects), so that a router's index
is one lookup a block and no token id leaves the worker.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import msgspec

__all__ = ["KvBatch", "KvCleared", "KvEvent", "KvRemoved", "KvStored"]


class KvStored(msgspec.Struct, frozen=True, tag="s", array_like=True):
    """Blocks that became reusable, in chain order. Each is the successor of the one before."""

    seq_hashes: Sequence[int]
    """64 bits each. An engine gives what it has; what a router gets is an ``array("Q")``."""
    tier: str = "device"


class KvRemoved(msgspec.Struct, frozen=True, tag="r", array_like=True):
    """Blocks that are reusable no longer, in any order. Unknown ones are ignored."""

    seq_hashes: Sequence[int]
    tier: str = "device"


class KvCleared(msgspec.Struct, frozen=True, tag="c", array_like=True):
    """The whole cache of this rank was dropped."""


KvEvent: TypeAlias = KvStored | KvRemoved | KvCleared


class KvBatch(msgspec.Struct, frozen=True, array_like=True):
    """What one engine step changed. ``seq`` counts batches of one worker and rank from 0; a hole means that batches were lost."""

    worker_id: int
    seq: int
    events: tuple[KvEvent, ...]
    dp_rank: int = 0
