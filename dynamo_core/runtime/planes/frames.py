"""What travels on a connection of the multiplexed request planes.

A frame is a little-endian ``u32`` length and a msgpack array of messages; a message is an array ``[kind, stream, …]``. Everything
that is written within one turn of the event loop is one frame. A message of more than :data:`PART_BYTES` is cut into
:class:`Part` messages, so that the messages of other streams pass between them and no frame exceeds :data:`MAX_FRAME_BYTES`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import msgspec

from dynamo_core.errors import DynamoError, ProtocolError, error_from_wire

__all__ = [
    "MAX_FRAME_BYTES",
    "MAX_MESSAGE_BYTES",
    "PART_BYTES",
    "PART_COST",
    "UNSENDABLE",
    "VERSION",
    "WINDOW",
    "Assembler",
    "Cancel",
    "Credit",
    "Data",
    "Drain",
    "End",
    "Error",
    "FrameReader",
    "Hello",
    "Message",
    "Open",
    "Part",
    "Ping",
    "Pong",
    "encode_frame",
    "encode_message",
    "error_message",
    "joined",
    "parts",
    "seal",
    "wire_error",
]

VERSION = 1
PART_BYTES = 64 * 1024
PART_COST = 16
"""Credit that a part of an item costs: a window of items then also bounds bytes (4 MiB of large items)."""
WINDOW = 1024
"""Items of one stream that may be on their way."""
UNSENDABLE = "response_not_sendable"
"""Code of an error whose message lacks its subject: a response of the stream's endpoint."""
MAX_FRAME_BYTES = 1024 * 1024
"""A longer length field is garbage: our own frames stay near :data:`PART_BYTES`."""
MAX_MESSAGE_BYTES = 256 * 1024 * 1024
"""Of one message put together again from its parts; four times the largest HTTP body that is accepted unless told otherwise."""


# gc=False: messages live for one callback and are in no cycle, and the collector need not look at 256 of them a frame.
class Hello(msgspec.Struct, array_like=True, tag=0, frozen=True, gc=False):
    """First message of either side."""

    version: int
    instance_id: int = 0
    """Of the serving process."""


class Open(msgspec.Struct, array_like=True, tag=1, frozen=True, gc=False):
    stream: int
    endpoint: str
    instance_id: int
    """Whom the client means: addresses are used again, instance ids are not."""
    request_id: str
    request: Any
    deadline: float | None = None
    metadata: dict[str, Any] = {}
    trace_headers: dict[str, str] = {}


class Data(msgspec.Struct, array_like=True, tag=2, frozen=True, gc=False):
    stream: int
    items: list[Any]


class End(msgspec.Struct, array_like=True, tag=3, frozen=True, gc=False):
    stream: int


class Error(msgspec.Struct, array_like=True, tag=4, frozen=True, gc=False):
    stream: int
    name: str
    message: str
    param: str | None = None
    code: str | None = None
    retry_after: float | None = None


class Cancel(msgspec.Struct, array_like=True, tag=5, frozen=True, gc=False):
    stream: int
    kill: bool


class Credit(msgspec.Struct, array_like=True, tag=6, frozen=True, gc=False):
    stream: int
    amount: int
    """Items that the receiver takes beyond what it granted before; a part counts as :data:`PART_COST` items."""


class Ping(msgspec.Struct, array_like=True, tag=7, frozen=True, gc=False):
    token: int


class Pong(msgspec.Struct, array_like=True, tag=8, frozen=True, gc=False):
    token: int


class Drain(msgspec.Struct, array_like=True, tag=9, frozen=True, gc=False):
    """The server refuses further requests for ``endpoint``."""

    endpoint: str


class Part(msgspec.Struct, array_like=True, tag=10, frozen=True, gc=False):
    """A piece of an encoded message of ``stream``. The message is complete with the ``last`` one."""

    stream: int
    last: bool
    chunk: bytes


Message: TypeAlias = Hello | Open | Data | End | Error | Cancel | Credit | Ping | Pong | Drain | Part

# What msgspec raises for input that is not msgpack or not a message: its own errors, and what Python raises for
# nesting too deep, keys that cannot be hashed, broken UTF-8 and timestamps out of range.
_BAD_INPUT = (msgspec.MsgspecError, RecursionError, TypeError, ValueError, OverflowError, MemoryError)

_LENGTH = struct.Struct("<I")
_encode = msgspec.msgpack.Encoder().encode
_decode_frame = msgspec.msgpack.Decoder(list[Message]).decode
_decode_message = msgspec.msgpack.Decoder(Message).decode


def encode_message(message: Message) -> bytes:
    """Raises what msgspec raises for values that msgpack cannot express (TypeError, OverflowError and the like)."""
    return _encode(message)


def encode_frame(messages: Sequence[Message | msgspec.Raw]) -> bytes:
    """A frame without its length, for :func:`seal`. Raises as :func:`encode_message`."""
    return _encode(messages)


def seal(frame: bytes) -> bytes:
    return _LENGTH.pack(len(frame)) + frame


def parts(stream: int, message: bytes) -> Iterator[Part]:
    """Cut an encoded message. Lazy: a part is copied out when it is about to be written."""
    end = len(message)
    for start in range(0, end, PART_BYTES):
        stop = start + PART_BYTES
        yield Part(stream, stop >= end, message[start:stop])


class FrameReader:
    """Turns a byte stream into messages. Not usable any more after it raised."""

    __slots__ = ("_tail", "several")

    def __init__(self) -> None:
        self._tail = b""
        self.several = False
        """Whether the latest :meth:`feed` completed more than one frame."""

    def feed(self, data: bytes) -> list[Message]:
        """The messages of all frames that ``data`` completes. Raises :class:`ProtocolError`."""
        if self._tail:
            data = self._tail + data
        start, available = 0, len(data)
        self.several = False
        messages: list[Message] = []
        view = memoryview(data)
        while available - start >= 4:
            (length,) = _LENGTH.unpack_from(data, start)
            if length > MAX_FRAME_BYTES:
                raise ProtocolError(f"a frame of {length} bytes was announced; at most {MAX_FRAME_BYTES} are allowed")
            stop = start + 4 + length
            if stop > available:
                break
            try:
                decoded = _decode_frame(view[start + 4 : stop])
            except _BAD_INPUT as error:
                raise ProtocolError(f"a frame could not be decoded: {error}") from None
            if start:
                self.several = True
                messages += decoded
            else:
                messages = decoded
            start = stop
        self._tail = data[start:] if start < available else b""
        return messages


def joined(messages: list[Message]) -> list[Message]:
    """The messages of several frames, with the items of each stream in one :class:`Data`, the first.

    What piled up while the reader was busy is then handled, and written on, once a stream instead of once an item.
    """
    first: dict[int, Data] = {}
    kept: list[Message] = []
    for message in messages:
        if type(message) is Data:
            earlier = first.setdefault(message.stream, message)
            if earlier is message:
                kept.append(message)
            else:
                earlier.items.extend(message.items)
        else:
            first.pop(getattr(message, "stream", 0), None)  # what follows must stay behind it
            kept.append(message)
    return kept


class Assembler:
    """Puts the parts of one message together."""

    __slots__ = ("_chunks", "_size")

    def __init__(self) -> None:
        self._chunks: list[bytes] = []
        self._size = 0

    @property
    def count(self) -> int:
        """Parts so far."""
        return len(self._chunks)

    def add(self, part: Part) -> Message | None:
        """The message, with its last part. Raises :class:`ProtocolError`."""
        self._size += len(part.chunk)
        if self._size > MAX_MESSAGE_BYTES:
            raise ProtocolError(f"a message exceeds {MAX_MESSAGE_BYTES} bytes")
        self._chunks.append(part.chunk)
        if not part.last:
            return None
        try:
            message: Message = _decode_message(b"".join(self._chunks))
        except _BAD_INPUT as error:
            raise ProtocolError(f"a message could not be decoded: {error}") from None
        if getattr(message, "stream", None) != part.stream or isinstance(message, Part):
            raise ProtocolError("the parts of a stream hold a message that does not belong to it")
        return message


def error_message(stream: int, error: DynamoError) -> Error:
    """An exception as a message. A subclass of the plugin's own travels as the nearest class that every core knows."""
    known = (cls.__name__ for cls in type(error).__mro__ if type(error_from_wire(cls.__name__, "")) is cls)
    return Error(stream, next(known, "EngineError"), error.message, error.param, error.code, error.retry_after)


def wire_error(message: Error) -> DynamoError:
    error = error_from_wire(message.name, message.message, message.param, message.code)
    error.retry_after = message.retry_after
    return error
