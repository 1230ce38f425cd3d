from __future__ import annotations

import contextlib
import json
import random
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamo_core.errors import EngineError, InvalidRequest, Overloaded, ProtocolError, RateLimited
from dynamo_core.runtime.planes.frames import (
    MAX_FRAME_BYTES,
    PART_BYTES,
    Assembler,
    Cancel,
    Credit,
    Data,
    Drain,
    End,
    Error,
    FrameReader,
    Hello,
    Open,
    Part,
    Ping,
    Pong,
    encode_frame,
    encode_message,
    error_message,
    joined,
    parts,
    seal,
    wire_error,
)

streams = st.integers(0, 2**63 - 1)
text = st.text(max_size=20)
scalars = (
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | text | st.binary(max_size=20)
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4), max_leaves=12
)
messages = st.one_of(
    st.builds(Hello, st.integers(0, 9), streams),
    st.builds(
        Open, streams, text, streams, text, values, st.none() | st.floats(0, 2e9),
        st.dictionaries(text, values, max_size=3), st.dictionaries(text, text, max_size=3),
    ),
    st.builds(Data, streams, st.lists(values, max_size=6)),
    st.builds(End, streams),
    st.builds(Error, streams, text, text, st.none() | text, st.none() | text, st.none() | st.floats(0, 100)),
    st.builds(Cancel, streams, st.booleans()),
    st.builds(Credit, streams, st.integers(0, 2**31)),
    st.builds(Ping, streams),
    st.builds(Pong, streams),
    st.builds(Drain, text),
    st.builds(Part, streams, st.booleans(), st.binary(max_size=50)),
)  # fmt: skip


@given(st.lists(st.lists(messages, max_size=8), max_size=6), st.data())
def test_frames_survive_any_fragmentation(turns: list[list[Any]], data: st.DataObject) -> None:
    """The naive model: what was sent, in order, whatever pieces the network makes of it."""
    wire = b"".join(seal(encode_frame(turn)) for turn in turns)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(wire)), max_size=10)))
    reader = FrameReader()
    received = []
    for start, stop in zip([0, *cuts], [*cuts, len(wire)], strict=True):
        received += reader.feed(wire[start:stop])
    assert received == [message for turn in turns for message in turn]


few = st.integers(1, 3)


@given(st.lists(st.builds(Data, few, st.lists(st.integers(0, 9), max_size=3)) | st.builds(End, few) | st.builds(Ping, few)))
def test_joined_messages_bring_each_stream_the_same_in_the_same_order(sent: list[Any]) -> None:
    def of_stream(stream: int, messages: list[Any]) -> list[Any]:
        own = (message for message in messages if getattr(message, "stream", None) == stream)
        return [item for message in own for item in (message.items if isinstance(message, Data) else [message])]

    expected = [of_stream(stream, sent) for stream in (1, 2, 3)]
    received = joined(sent)
    assert [of_stream(stream, received) for stream in (1, 2, 3)] == expected
    ends = sum(isinstance(message, End) for message in sent)
    assert sum(isinstance(message, Data) for message in received) <= 3 + ends


def test_items_do_not_overtake_a_part_of_their_stream() -> None:
    whole = [Data(1, [1]), Part(1, True, encode_message(Data(1, [2]))), Data(1, [3]), Data(2, [4]), Data(1, [5]), Data(2, [6])]
    assert joined(whole) == [Data(1, [1]), whole[1], Data(1, [3, 5]), Data(2, [4, 6])]


def test_a_reader_tells_whether_frames_piled_up() -> None:
    reader = FrameReader()
    frame = seal(encode_frame([End(3)]))
    for data, several in ((frame, False), (frame * 2, True), (frame[:-1], False), (frame[-1:], False)):
        reader.feed(data)
        assert reader.several is several


@given(st.binary(max_size=400))
def test_garbage_is_a_protocol_error_or_waits_for_more(garbage: bytes) -> None:
    for wire in (garbage, seal(garbage)):
        with contextlib.suppress(ProtocolError):
            FrameReader().feed(wire)


@given(st.lists(messages, min_size=1, max_size=5), st.integers(0, 2**32), st.integers(1, 6))
def test_damaged_frames_raise_nothing_but_protocol_errors(turn: list[Any], seed: int, damages: int) -> None:
    frame = bytearray(encode_frame(turn))
    dice = random.Random(seed)
    for _ in range(damages):
        frame[dice.randrange(len(frame))] = dice.randrange(256)
    with contextlib.suppress(ProtocolError):
        FrameReader().feed(seal(bytes(frame)))


@pytest.mark.parametrize(
    "frame",
    [
        b"\x91" * 100_000 + b"\xc0",  # nested deeper than Python's stack
        msgspec.msgpack.encode([[99, 1]]),  # an unknown kind
        msgspec.msgpack.encode([[2, 1]]),  # Data without items
        msgspec.msgpack.encode([[2, "x", []]]),
        msgspec.msgpack.encode({"a": 1}),
        msgspec.msgpack.encode([[1, 1, "a.b.c", 1, "r", None, "no deadline"]]),
        b"\x91\x93\x02\x01\x91\x81\x81\x01\x02\x03",  # a map as the key of a map
        b"\xc1",
        b"",
    ],
)
def test_frames_that_are_none_are_refused(frame: bytes) -> None:
    with pytest.raises(ProtocolError):
        FrameReader().feed(seal(frame))


def test_an_announced_length_beyond_the_limit_is_refused_at_once() -> None:
    with pytest.raises(ProtocolError):
        FrameReader().feed((MAX_FRAME_BYTES + 1).to_bytes(4, "little"))


def test_a_reader_keeps_an_incomplete_frame_without_reading_it() -> None:
    reader = FrameReader()
    wire = seal(encode_frame([End(3)]))
    for byte in wire[:-1]:
        assert reader.feed(bytes([byte])) == []
    assert reader.feed(wire[-1:]) == [End(3)]


@pytest.mark.parametrize("size", [1, PART_BYTES - 1, PART_BYTES, PART_BYTES + 1, 5 * PART_BYTES])
def test_parts_add_up_to_the_message(size: int) -> None:
    message = Data(4, ["x" * size])
    encoded = encode_message(message)
    pieces = list(parts(4, encoded))
    assert [piece.last for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    assert all(len(piece.chunk) <= PART_BYTES for piece in pieces)
    assembler = Assembler()
    assert [assembler.add(piece) for piece in pieces] == [None] * (len(pieces) - 1) + [message]


def test_parts_of_another_streams_message_are_refused() -> None:
    with pytest.raises(ProtocolError):
        Assembler().add(Part(4, True, encode_message(End(5))))
    with pytest.raises(ProtocolError):
        Assembler().add(Part(4, True, encode_message(Part(4, True, b""))))
    with pytest.raises(ProtocolError):
        Assembler().add(Part(4, True, json.dumps("no msgpack").encode()))


def test_errors_keep_class_text_and_hints() -> None:
    error = wire_error(error_message(1, Overloaded("full", retry_after=2.5)))
    assert (type(error), error.message, error.retry_after) == (Overloaded, "full", 2.5)
    error = wire_error(error_message(1, InvalidRequest("bad", param="n", code="c")))
    assert (type(error), error.param, error.code) == (InvalidRequest, "n", "c")


def test_a_plugins_own_error_travels_as_the_nearest_known_class() -> None:
    class Quota(RateLimited):
        pass

    assert type(wire_error(error_message(1, Quota("slow down")))) is RateLimited
    assert type(wire_error(Error(1, "FromTheFuture", "what"))) is EngineError
