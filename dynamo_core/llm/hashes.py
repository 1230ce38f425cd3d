"""Names of KV blocks, as Dynamo's bindings compute them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dynamo_core.errors import ConfigError
from dynamo_core.kv import block_hashes

__all__ = ["compute_block_hash_for_seq"]


def compute_block_hash_for_seq(
    tokens: Sequence[int], kv_block_size: int, block_mm_infos: Sequence[Any] | None = None, lora_name: str | None = None
) -> list[int]:
    """One hash for each full block, of its own tokens alone; ``KvEventPublisher`` and routers chain them. Blocks with images are
    refused with a ConfigError."""
    if block_mm_infos is not None and any(info is not None for info in block_mm_infos):
        raise ConfigError("compute_block_hash_for_seq: blocks with images have no hash here; leave block_mm_infos out")
    return block_hashes(tokens, kv_block_size, lora=lora_name)
