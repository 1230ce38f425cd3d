"""KV batches as the bytes that travel on the event plane."""

from __future__ import annotations

import msgspec

from dynamo_core.contracts import KvBatch

__all__ = ["decode_kv_batch", "encode_kv_batch"]


def encode_kv_batch(batch: KvBatch) -> bytes:
    """msgpack, arrays in place of maps."""
    return msgspec.msgpack.encode(batch)


def decode_kv_batch(payload: bytes) -> KvBatch | None:
    """``None`` for what is no batch."""
    try:
        return msgspec.msgpack.decode(payload, type=KvBatch)
    except msgspec.MsgspecError:
        return None
