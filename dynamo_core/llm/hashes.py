"""Names of KV blocks, as Dynamo's bindings compute them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from struct import error, pack
from typing import Any

from xxhash import xxh3_64_intdigest

from dynamo_core.errors import InvalidRequest
from dynamo_core.kv import block_hashes, hash_seed
from dynamo_core.kv.hashing import token_bytes

__all__ = ["compute_block_hash_for_seq"]


def compute_block_hash_for_seq(
    tokens: Sequence[int],
    kv_block_size: int,
    block_mm_infos: Sequence[Mapping[str, Any] | None] | None = None,
    lora_name: str | None = None,
    is_eagle: bool | None = None,
    cache_namespace: str | None = None,
) -> list[int]:
    """One hash for each full block, of its own tokens alone; ``KvEventPublisher`` and routers chain them. They are Dynamo's, but
    for those with a ``cache_namespace``.

    The hashes of a block's images (``{"mm_objects": [{"mm_hash": …}]}``) follow its tokens, smallest first. ``is_eagle``: a block
    has one token more, the next one's first. Raises InvalidRequest.
    """
    if kv_block_size < 1:
        raise InvalidRequest(f"kv_block_size is {kv_block_size}, but a block has 1 token or more")
    if not is_eagle and not any(block_mm_infos or ()):
        return block_hashes(tokens, kv_block_size, lora=lora_name, salt=cache_namespace)
    seed = hash_seed(lora_name, cache_namespace)
    window = kv_block_size + bool(is_eagle)
    data = token_bytes(tokens)
    starts = range(0, len(tokens) - window + 1, kv_block_size)
    images = [*(block_mm_infos or ()), *[None] * len(starts)]
    return [
        xxh3_64_intdigest(bytes(data[4 * start : 4 * (start + window)]) + _image_bytes(image), seed)
        for start, image in zip(starts, images, strict=False)
    ]


def _image_bytes(block: Mapping[str, Any] | None) -> bytes:
    if not block:
        return b""
    try:
        hashes = sorted(one["mm_hash"] for one in block["mm_objects"])
        return pack(f"<{len(hashes)}Q", *hashes)
    except (LookupError, TypeError, error):
        text = 'block_mm_infos must have {"mm_objects": [{"mm_hash": 64-bit number}]} or None for each block'
        raise InvalidRequest(text) from None
