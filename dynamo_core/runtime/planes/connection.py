"""One end of a connection: an outbox that leaves as one frame a turn, large messages in parts, back-pressure."""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator
from typing import cast

import msgspec

from dynamo_core.errors import DynamoError, InvalidRequest, PayloadTooLarge, ProtocolError
from dynamo_core.runtime.planes.frames import (
    MAX_MESSAGE_BYTES,
    PART_BYTES,
    PART_COST,
    Assembler,
    FrameReader,
    Hello,
    Message,
    Part,
    Ping,
    Pong,
    encode_frame,
    encode_message,
    joined,
    parts,
    seal,
)
from dynamo_core.runtime.planes.heartbeat import Beat, Heartbeat

__all__ = ["HEARTBEAT", "Connection"]

_log = logging.getLogger(__name__)

_PARTS_A_TURN = 16
"""1 MiB of large messages, then other callbacks of the loop get their turn."""

HEARTBEAT = 0
"""The token of pings that ask whether the peer still answers."""

# What msgspec raises for values that msgpack cannot express.
_CANNOT_ENCODE = (msgspec.MsgspecError, TypeError, ValueError, OverflowError, RecursionError)


class Connection(asyncio.Protocol, ABC):
    """All methods belong to the loop's thread. Messages of one stream keep their order."""

    def __init__(self, hello: Hello) -> None:
        self.turn = 0
        """Goes up with each flush: what was put into the outbox in this turn may still be added to."""
        self.closed = False
        self.beat: Beat | None = None
        """With one, a peer that does not answer is lost. Set before the transport is there."""
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._writable = False
        self._outbox: list[Message] = [hello]
        self._backlogs: dict[int, _Backlog] = {}
        self._assemblers: dict[int, Assembler] = {}
        self._reader = FrameReader()
        self._broken: Exception | None = None
        """Why this side ends the connection."""
        self._heartbeat: Heartbeat | None = None
        self._closing = False
        self._gone = asyncio.Event()

    @abstractmethod
    def _receive(self, messages: list[Message]) -> None:
        """Handle what arrived together. Raises :class:`ProtocolError` for what a peer must not send."""

    @abstractmethod
    def _lost(self, error: Exception | None) -> None:
        """The connection is gone. Called once."""

    @abstractmethod
    def _reject(self, message: Message, error: DynamoError) -> None:
        """``message`` cannot be sent; ``error`` says why, with the message as its subject."""

    def _charge(self, stream: int, amount: int) -> None:
        """A message of ``stream`` cost ``amount`` more credit than it has items."""

    # --- writing -------------------------------------------------------------------------------------------------------------

    def send(self, message: Message) -> None:
        """Leaves with everything else that is sent in this turn."""
        outbox = self._outbox
        if not outbox and self._writable:
            self._loop.call_soon(self._flush)
        outbox.append(message)

    def _flush(self) -> None:
        outbox = self._outbox
        if not outbox or not self._writable:
            return
        self._outbox = []
        self.turn += 1
        if not self._backlogs:
            try:
                frame = encode_frame(outbox)
            except _CANNOT_ENCODE:
                frame = None  # which message it is shows when they are encoded one by one
            if frame is not None and len(frame) <= PART_BYTES:
                self._write(frame)
                return
        self._flush_singly(outbox)

    def _flush_singly(self, outbox: list[Message]) -> None:
        """The slow way: something is large, cannot be encoded, or must wait behind a large message of its stream."""
        group: list[msgspec.Raw] = []
        size = 0
        failed: set[int] = set()
        for message in outbox:
            stream = getattr(message, "stream", 0)
            if stream in failed:
                continue  # what follows a lost message must not arrive without it
            encoded = self._encode(message)
            if encoded is None:
                failed.add(stream)
                continue
            if stream in self._backlogs or len(encoded) > PART_BYTES:
                self._backlogs.setdefault(stream, _Backlog(stream)).add(encoded)
                continue
            if size + len(encoded) > PART_BYTES and group:
                self._write(encode_frame(group))
                group, size = [], 0
            group.append(msgspec.Raw(encoded))
            size += len(encoded)
        if group:
            self._write(encode_frame(group))
        self._pump()

    def _encode(self, message: Message) -> bytes | None:
        try:
            encoded = encode_message(message)
        except _CANNOT_ENCODE as error:
            self._reject(message, InvalidRequest(f"cannot be sent as msgpack: {error}"))
            return None
        if len(encoded) > MAX_MESSAGE_BYTES:
            self._reject(message, PayloadTooLarge(f"has {len(encoded)} bytes, too many for one message; {MAX_MESSAGE_BYTES} fit"))
            return None
        if len(encoded) > PART_BYTES:
            self._charge(cast("Part", message).stream, -(-len(encoded) // PART_BYTES) * PART_COST)
        return encoded

    def _pump(self) -> None:
        """Write parts of large messages, each stream in its turn."""
        written = 0
        while self._backlogs and self._writable:
            if written >= _PARTS_A_TURN:
                self._loop.call_soon(self._pump)
                return
            stream = next(iter(self._backlogs))
            backlog = self._backlogs.pop(stream)
            piece = backlog.take()
            if piece is not None:
                self._backlogs[stream] = backlog  # to the end of the queue
                self._write(encode_frame([piece]))
                written += 1
        if self._closing and not self._backlogs and self._transport is not None:
            self._transport.close()

    def _forget(self, stream: int) -> None:
        """Nobody waits for what is left of this stream."""
        self._backlogs.pop(stream, None)
        self._assemblers.pop(stream, None)

    def _write(self, frame: bytes) -> None:
        transport = self._transport
        if transport is not None:
            transport.write(seal(frame))

    # --- reading -------------------------------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        if self._broken is not None:
            return
        try:
            messages = self._reader.feed(data)
            self._receive(joined(messages) if self._reader.several else messages)
        except ProtocolError as error:
            self._broken = error
            _log.warning("closing a connection of the request plane (%s): %s", self.peer(), error)
            self.abort()

    def _pong(self, message: Pong) -> None:
        if self._heartbeat is not None and message.token == HEARTBEAT:
            self._heartbeat.answered()

    def _assemble(self, part: Part) -> tuple[Message | None, int]:
        """The message that ``part`` completes, if it does, and what its parts cost in credit."""
        assembler = self._assemblers.setdefault(part.stream, Assembler())
        message = assembler.add(part)
        if message is not None:
            del self._assemblers[part.stream]
        return message, assembler.count * PART_COST

    # --- life ----------------------------------------------------------------------------------------------------------------

    def peer(self) -> str:
        """For log lines."""
        transport = self._transport
        name = transport and (transport.get_extra_info("peername") or transport.get_extra_info("sockname"))
        return str(name or "not connected")

    def _silent(self, reason: str) -> None:
        if not self._closing and self._broken is None:
            _log.warning("closing a connection of the request plane (%s): %s", self.peer(), reason)
        self._broken = self._broken or TimeoutError(reason)
        self.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._writable = True
        if self.closed:
            self.abort()
            return
        if self.beat is not None:
            self._heartbeat = Heartbeat(self.beat, lambda: self.send(Ping(HEARTBEAT)), self._silent)
        self._flush()

    def pause_writing(self) -> None:
        self._writable = False

    def resume_writing(self) -> None:
        self._writable = True
        self._flush()
        self._pump()

    def connection_lost(self, exc: Exception | None) -> None:
        self._writable = False
        self._gone.set()
        if self._heartbeat is not None:
            self._heartbeat.stop()
        already, self.closed = self.closed, True
        self._outbox.clear()
        self._backlogs.clear()
        self._assemblers.clear()
        if not already:
            self._lost(exc or self._broken)

    def close(self) -> None:
        """Write what is waiting, then close."""
        self._flush()
        self.closed = self._closing = True
        self._pump()

    async def gone(self) -> None:
        """Wait until the transport is closed and what was written has left it; at once when there never was one."""
        if self._transport is not None:
            await self._gone.wait()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()


class _Backlog:
    """Encoded messages of one stream: a large one, cut up, and what must not overtake it."""

    __slots__ = ("_messages", "_parts", "_stream")

    def __init__(self, stream: int) -> None:
        self._stream = stream
        self._messages: deque[bytes] = deque()
        self._parts: Iterator[Part] = iter(())

    def add(self, message: bytes) -> None:
        self._messages.append(message)

    def take(self) -> Part | msgspec.Raw | None:
        piece = next(self._parts, None)
        if piece is None and self._messages:
            message = self._messages.popleft()
            if len(message) <= PART_BYTES:
                return msgspec.Raw(message)
            self._parts = parts(self._stream, message)
            piece = next(self._parts)
        return piece
