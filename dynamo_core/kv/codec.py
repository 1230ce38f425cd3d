"""KV batches as the bytes that travel on the event plane.

msgpack, arrays in place of maps. The hashes of an event are bytes, eight to each, little-endian: a router's index reads them as
they are, and no object is made for each.
"""

from __future__ import annotations

import sys
from array import array
from typing import TypeAlias

import msgspec

from dynamo_core.contracts import KvBatch, KvCleared, KvEvent, KvRemoved, KvStored

__all__ = ["decode_kv_batch", "encode_kv_batch"]


class _Stored(msgspec.Struct, frozen=True, tag="s", array_like=True):
    seq_hashes: bytes
    tier: str = "device"


class _Removed(msgspec.Struct, frozen=True, tag="r", array_like=True):
    seq_hashes: bytes
    tier: str = "device"


_Event: TypeAlias = _Stored | _Removed | KvCleared


class _Batch(msgspec.Struct, frozen=True, array_like=True):
    """A :class:`KvBatch`."""

    worker_id: int
    seq: int
    events: tuple[_Event, ...]
    dp_rank: int = 0


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Batch).decode


def encode_kv_batch(batch: KvBatch) -> bytes:
    """Raises :class:`OverflowError` for a hash that has no place in 64 bits."""
    return _encode(_Batch(batch.worker_id, batch.seq, tuple(map(_packed, batch.events)), batch.dp_rank))


def decode_kv_batch(payload: bytes) -> KvBatch | None:
    """``None`` for what is no batch."""
    try:
        batch = _decode(payload)
        return KvBatch(batch.worker_id, batch.seq, tuple(map(_unpacked, batch.events)), batch.dp_rank)
    except (msgspec.MsgspecError, ValueError):
        return None


def _packed(event: KvEvent) -> _Event:
    if isinstance(event, KvCleared):
        return event
    wire = _Stored if isinstance(event, KvStored) else _Removed
    return wire(_swapped(array("Q", event.seq_hashes)).tobytes(), event.tier)


def _unpacked(event: _Event) -> KvEvent:
    if isinstance(event, KvCleared):
        return event
    hashes = array("Q")
    hashes.frombytes(event.seq_hashes)
    ours = KvStored if isinstance(event, _Stored) else KvRemoved
    return ours(_swapped(hashes), event.tier)


def _swapped(hashes: array[int]) -> array[int]:
    """Little-endian for this machine's order, or the other way round."""
    if sys.byteorder == "big":
        hashes.byteswap()
    return hashes
