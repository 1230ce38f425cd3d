"""How engine requests and chunks look on the request plane: maps, lists and integers that any msgpack peer can make.

A request is the map of :class:`~dynamo_core.contracts.EngineRequest` without its defaults; its token ids are bytes, four to each,
little-endian, or a list of integers. A response item is one of

* an integer: one more token and nothing else to say (nearly all items, so it costs nothing to make or to read);
* a list of integers: several tokens;
* the map of :class:`~dynamo_core.contracts.EngineChunk` without its defaults; the one with a ``finish_reason`` is the last.
"""

from __future__ import annotations

from typing import Any

import msgspec

from dynamo_core.contracts import EngineChunk, EngineLoad, EngineRequest, KvBatch, ModelCard
from dynamo_core.errors import ProtocolError
from dynamo_core.kv.codec import decode_kv_batch, encode_kv_batch
from dynamo_core.kv.hashing import token_array, token_bytes

__all__ = [
    "KV_TOPIC",
    "LOAD_TOPIC",
    "MODELS_PREFIX",
    "LoadReading",
    "ModelKey",
    "decode_card",
    "decode_chunk",
    "decode_kv_batch",
    "decode_load",
    "decode_request",
    "encode_card",
    "encode_chunk",
    "encode_event",
    "encode_request",
]

KV_TOPIC = "kv"
"""Event topic of :class:`~dynamo_core.contracts.KvBatch`."""
LOAD_TOPIC = "load"
"""Event topic of :class:`LoadReading`."""
MODELS_PREFIX = "models/"


class LoadReading(msgspec.Struct, frozen=True, array_like=True):
    """What a worker says about its queues; several workers of one process share an event address, hence the id."""

    worker_id: int
    load: EngineLoad
    kv_next: dict[int, int] = {}
    """By data-parallel rank: the number that its next :class:`~dynamo_core.contracts.KvBatch` will have."""


class ModelKey(msgspec.Struct, frozen=True):
    """Where in discovery a worker puts its card: ``models/namespace/component/endpoint/instance id in hexadecimal``."""

    namespace: str
    component: str
    endpoint: str
    instance_id: int

    @classmethod
    def parse(cls, key: str) -> ModelKey | None:
        """``None`` for a key of another form."""
        parts = key.split("/")
        if len(parts) != 5 or parts[0] != MODELS_PREFIX[:-1]:
            return None
        try:
            return cls(parts[1], parts[2], parts[3], int(parts[4], 16))
        except ValueError:
            return None

    def __str__(self) -> str:
        return f"{MODELS_PREFIX}{self.namespace}/{self.component}/{self.endpoint}/{self.instance_id:x}"

    @property
    def path(self) -> str:
        """The endpoint's dotted path."""
        return f"{self.namespace}.{self.component}.{self.endpoint}"


def encode_request(request: EngineRequest) -> Any:
    """The token ids of an ``array("I")`` are copied once, as they are."""
    fields: dict[str, Any] = msgspec.to_builtins(msgspec.structs.replace(request, token_ids=()))
    try:
        fields["token_ids"] = bytes(token_bytes(request.token_ids))
    except (OverflowError, TypeError):  # no ids of any model: what the worker makes of them is its affair
        fields["token_ids"] = list(request.token_ids)
    return fields


def decode_request(item: Any) -> EngineRequest:
    """The token ids are an ``array("I")`` if they came as bytes.

    Raises :class:`~dynamo_core.errors.ProtocolError` with the place of the first misfit.
    """
    try:
        packed = item.get("token_ids") if type(item) is dict else None
        if type(packed) is not bytes:
            return msgspec.convert(item, EngineRequest)
        request = msgspec.convert({**item, "token_ids": ()}, EngineRequest)
        msgspec.structs.force_setattr(request, "token_ids", token_array(packed))  # ours alone so far
        return request
    except (msgspec.ValidationError, ValueError) as error:
        raise ProtocolError(f"The peer sent what is not an engine request: {error}.") from error


def encode_chunk(chunk: EngineChunk) -> Any:
    if (
        chunk.finish_reason is None
        and chunk.logprobs is None
        and chunk.cached_tokens is None
        and chunk.stop_reason is None
        and chunk.error is None
    ):
        tokens = chunk.token_ids
        return tokens[0] if len(tokens) == 1 else list(tokens)
    return msgspec.to_builtins(chunk, enc_hook=list)  # token ids may be a part of the prompt's array


def decode_chunk(item: Any) -> EngineChunk:
    """Any item but an integer, which the hot path handles itself. Raises :class:`~dynamo_core.errors.ProtocolError`."""
    try:
        if type(item) is list:
            return EngineChunk(msgspec.convert(item, list[int]))
        return msgspec.convert(item, EngineChunk)
    except msgspec.ValidationError as error:
        raise ProtocolError(f"The worker sent what is not an engine chunk: {error}.") from error


def encode_event(event: KvBatch | LoadReading) -> bytes:
    return encode_kv_batch(event) if isinstance(event, KvBatch) else msgspec.msgpack.encode(event)


def decode_load(payload: bytes) -> LoadReading | None:
    """``None`` for what is no reading."""
    try:
        return msgspec.msgpack.decode(payload, type=LoadReading)
    except msgspec.MsgspecError:
        return None


def encode_card(card: ModelCard) -> bytes:
    return msgspec.json.encode(card)


def decode_card(value: bytes) -> ModelCard | None:
    """``None`` for what is no card (of this version)."""
    try:
        return msgspec.json.decode(value, type=ModelCard)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
