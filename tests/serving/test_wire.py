from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from functools import partial

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamo_core.contracts import (
    EngineChunk,
    EngineLoad,
    EngineRequest,
    KvBatch,
    KvCleared,
    KvRemoved,
    KvStored,
    ModelCard,
    SamplingParams,
    StopConditions,
    TokenLogprob,
)
from dynamo_core.errors import ProtocolError
from dynamo_core.serving.wire import (
    LoadReading,
    ModelKey,
    decode_card,
    decode_chunk,
    decode_kv_batch,
    decode_load,
    decode_request,
    encode_card,
    encode_chunk,
    encode_event,
    encode_request,
)


def through_msgpack(item: object) -> object:
    return msgspec.msgpack.decode(msgspec.msgpack.encode(item))


def test_a_request_survives_the_plane() -> None:
    request = EngineRequest(
        id="r",
        token_ids=array("I", [1, 2, 3]),
        sampling=SamplingParams(temperature=0.5, logit_bias={7: -1.0}, guided={"regex": "a+"}),
        stop=StopConditions(max_tokens=9, stop_token_ids=(4,)),
        eos_token_ids=(2,),
        logprobs=2,
        extra={"x": [1, {"y": None}]},
    )
    assert decode_request(through_msgpack(encode_request(request))) == request


@given(st.lists(st.integers(0, 2**32 - 1)), st.sampled_from((list, tuple, partial(array, "I"))))
def test_token_ids_travel_as_four_bytes_each(ids: list[int], kind: Callable[[list[int]], Sequence[int]]) -> None:
    item = encode_request(EngineRequest(id="r", token_ids=kind(ids)))
    assert item["token_ids"] == b"".join(number.to_bytes(4, "little") for number in ids)
    assert decode_request(through_msgpack(item)).token_ids == array("I", ids)


def test_token_ids_may_come_as_integers() -> None:
    assert decode_request({"id": "r", "token_ids": [1, 2, 3]}).token_ids == [1, 2, 3]


def test_what_are_no_token_ids_is_left_to_the_worker() -> None:
    assert encode_request(EngineRequest(id="r", token_ids=[-1, 2**40]))["token_ids"] == [-1, 2**40]


def test_a_part_of_a_prompt_can_be_a_chunk() -> None:
    prompt = array("I", [5, 6, 7])
    assert encode_chunk(EngineChunk(prompt[:2])) == [5, 6]
    assert through_msgpack(encode_chunk(EngineChunk(prompt[1:], finish_reason="stop"))) == {
        "token_ids": [6, 7],
        "finish_reason": "stop",
    }


def test_a_bare_token_is_an_integer() -> None:
    assert encode_chunk(EngineChunk((7,))) == 7
    assert encode_chunk(EngineChunk((7, 8))) == [7, 8]


@given(
    st.builds(
        EngineChunk,
        token_ids=st.lists(st.integers(0, 2**32 - 1), min_size=2),
        finish_reason=st.sampled_from([None, "stop", "length", "cancelled"]),
        stop_reason=st.one_of(st.none(), st.integers(0, 2**31), st.text()),
        cached_tokens=st.one_of(st.none(), st.integers(0, 2**20)),
        logprobs=st.one_of(
            st.none(), st.lists(st.builds(TokenLogprob, st.integers(0, 9), st.floats(-99, 0), st.just(((1, -0.5),))), max_size=3)
        ),
    )
)
def test_any_chunk_survives_the_plane(chunk: EngineChunk) -> None:
    item = through_msgpack(encode_chunk(chunk))
    assert through_msgpack(encode_chunk(decode_chunk(item))) == item


@pytest.mark.parametrize("item", [None, "text", {"token_ids": "x"}, ["a"], {"finish_reason": "because"}, 1.5])
def test_what_is_no_chunk_is_a_protocol_error(item: object) -> None:
    with pytest.raises(ProtocolError):
        decode_chunk(item)


@pytest.mark.parametrize("item", [None, 7, {}, {"id": "x"}, {"id": "x", "token_ids": b"12345"}, {"id": 1, "token_ids": []}])
def test_what_is_no_request_is_a_protocol_error(item: object) -> None:
    with pytest.raises(ProtocolError):
        decode_request(item)


def test_events_survive_and_garbage_is_none() -> None:
    hashes = array("Q", [2**64 - 1, 1])
    batch = KvBatch(2**52, 3, (KvCleared(), KvStored(hashes), KvStored((5,), "host"), KvRemoved(range(2, 4))), 1)
    events = (KvCleared(), KvStored(hashes), KvStored(array("Q", [5]), "host"), KvRemoved(array("Q", [2, 3])))
    assert decode_kv_batch(encode_event(batch)) == KvBatch(2**52, 3, events, 1)
    assert b"\xff" * 8 + b"\1" + 7 * b"\0" in encode_event(batch)
    reading = LoadReading(5, EngineLoad(running=2, waiting=1))
    assert decode_load(encode_event(reading)) == reading
    half = msgspec.msgpack.encode([1, 2, [["s", b"1234567"]]])
    for garbage in (b"", b"\xc1", b"\x93\x01\x02\x03", half):
        assert decode_kv_batch(garbage) is None
        assert decode_load(garbage) is None


@pytest.mark.parametrize("seq_hash", [-1, 2**64])
def test_a_hash_has_64_bits(seq_hash: int) -> None:
    with pytest.raises(OverflowError):
        encode_event(KvBatch(1, 0, (KvStored((1, seq_hash)),)))


def test_a_card_survives_and_garbage_is_none() -> None:
    card = ModelCard(name="m", path="/p", aliases=("a",), block_size=16, extra={"k": 1})
    assert decode_card(encode_card(card)) == card
    assert decode_card(b"\xff\xfe") is None
    assert decode_card(b"{}") is None


def test_a_card_key_is_read_back_and_other_keys_are_none() -> None:
    key = ModelKey("ns", "comp", "generate", 0xAB)
    assert str(key) == "models/ns/comp/generate/ab"
    assert ModelKey.parse(str(key)) == key
    assert key.path == "ns.comp.generate"
    for other in ("models/a/b/c", "instances/a/b/c/1", "models/a/b/c/xyz"):
        assert ModelKey.parse(other) is None
