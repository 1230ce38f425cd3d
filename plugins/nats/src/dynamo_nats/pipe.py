"""A byte stream between two processes, made of NATS messages.

A message is one byte that says what it is, a little-endian ``u64``, and bytes. ``DATA`` carries the next bytes of the stream;
its number counts the sender's ``DATA`` messages from 0, so that one that was lost ends the pipe. ``FIN`` ends it and carries how
many there were. Every message names the sender's own subject as its reply subject: where nobody listens any more, NATS says so.
"""

from __future__ import annotations

import asyncio
import enum
import struct
from collections.abc import Callable
from typing import Any

from dynamo_core.runtime.planes import ClientConnection, ServerConnection
from dynamo_nats.link import Link

__all__ = ["HEADER_BYTES", "Kind", "Pipe", "pack", "unpack"]

_HEADER = struct.Struct("<BQ")
HEADER_BYTES = _HEADER.size
_IDLE_FACTOR = 10


class Kind(enum.IntEnum):
    CONNECT = 0
    ACCEPT = 1
    DATA = 2
    FIN = 3
    PING = 4
    PONG = 5


def pack(kind: Kind, number: int = 0, data: bytes | memoryview = b"") -> bytes:
    return b"".join((_HEADER.pack(kind, number), data))


def unpack(message: bytes) -> tuple[Kind, int, bytes]:
    """Raises ValueError for what is no message."""
    if len(message) < HEADER_BYTES:
        raise ValueError(f"a message of {len(message)} bytes")
    kind, number = _HEADER.unpack_from(message)
    return Kind(kind), number, message[HEADER_BYTES:]


class Pipe(asyncio.Transport):
    """``own`` and ``peer`` are the subjects of its two ends; ``forget`` is called when it ends."""

    def __init__(
        self, link: Link, protocol: ClientConnection | ServerConnection, own: str, peer: str, forget: Callable[[], None]
    ) -> None:
        super().__init__()
        self.protocol = protocol
        self.own = own
        self.peer = peer
        self.accepted: asyncio.Future[None] | None = None
        """Of the side that dials."""
        self._link = link
        self._forget = forget
        self._loop = asyncio.get_running_loop()
        self._sent = 0
        self._received = 0
        self._closing = False
        self._heard = self._asked = self._loop.time()

    # --- the transport -------------------------------------------------------------------------------------------------------

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        if self._closing:
            return
        most = self._link.max_payload - HEADER_BYTES
        view = memoryview(data)
        for start in range(0, len(view), most):
            self._say(Kind.DATA, self._sent, view[start : start + most])
            self._sent += 1

    def is_closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        if not self._closing:
            self._say(Kind.FIN, self._sent)
            self.end(None)

    def abort(self) -> None:
        self.close()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self.peer if name == "peername" else default

    # --- what arrives --------------------------------------------------------------------------------------------------------

    def take(self, kind: Kind, number: int, data: bytes) -> None:
        self._heard = self._loop.time()
        if kind is Kind.DATA:
            if number != self._received:
                self.fail(f"{number - self._received} messages were lost")
                return
            self._received += 1
            self.protocol.data_received(data)
        elif kind is Kind.PING:
            self._say(Kind.PONG)
        elif kind is Kind.FIN:
            self.end(None if number == self._received else ConnectionResetError("the other side knows nothing of it any more"))

    def look(self, *, active: bool, heartbeat: float, timeout: float) -> None:
        """Ask after the peer, if it is time for it."""
        now = self._loop.time()
        if now - self._heard > timeout:
            self.fail(f"the other side was silent for {timeout:g} s")
        elif now - self._asked >= (heartbeat if active else min(heartbeat * _IDLE_FACTOR, timeout / 3)):
            self._asked = now
            self._say(Kind.PING)

    def fail(self, reason: str) -> None:
        """End both sides."""
        if not self._closing:
            self._say(Kind.FIN, self._sent)
            self.end(ConnectionResetError(reason))

    def end(self, error: Exception | None) -> None:
        """End this side."""
        if self._closing:
            return
        self._closing = True
        self._forget()
        if self.accepted is not None and not self.accepted.done():
            self.accepted.set_exception(error or ConnectionRefusedError("refused"))
        else:
            self._loop.call_soon(self.protocol.connection_lost, error)

    def _say(self, kind: Kind, number: int = 0, data: bytes | memoryview = b"") -> None:
        self._link.publish(self.peer, pack(kind, number, data), self.own)
