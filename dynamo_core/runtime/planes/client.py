"""The calling end of a connection."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from dynamo_core.contracts.context import Context
from dynamo_core.contracts.planes import StreamReceiver
from dynamo_core.errors import CannotConnect, Disconnected, DynamoError, ProtocolError
from dynamo_core.runtime.planes.connection import Connection
from dynamo_core.runtime.planes.frames import (
    UNSENDABLE,
    VERSION,
    WINDOW,
    Cancel,
    Credit,
    Data,
    Drain,
    End,
    Error,
    Hello,
    Message,
    Open,
    Part,
    Ping,
    Pong,
    wire_error,
)

__all__ = ["ClientConnection", "ConnectionStream"]

_log = logging.getLogger(__name__)

_GRANT = WINDOW // 2
"""Credit is given back in pieces of this size: at most one message for as many items."""


class ConnectionStream:
    """What the caller holds of an open stream."""

    __slots__ = ("_connection", "_paused", "endpoint", "id", "receiver", "taken", "unlink")

    def __init__(self, connection: ClientConnection, id: int, endpoint: str, receiver: StreamReceiver) -> None:
        self.id = id
        self.endpoint = endpoint
        self.receiver = receiver
        self.taken = 0
        """Items received and not yet granted again; below zero while paused, so that :data:`_GRANT` is never reached."""
        self.unlink: Callable[[], None] | None = None
        """Of the stream from its context; called by :meth:`part`."""
        self._connection = connection
        self._paused = False

    def cancel(self, *, kill: bool) -> None:
        connection = self._connection
        if self.id in connection.streams:
            connection.send(Cancel(self.id, kill))
            if kill:
                connection.remove(self)

    def pause(self) -> None:
        if not self._paused:
            self._paused = True
            self.taken -= _NEVER

    def resume(self) -> None:
        if self._paused:
            self._paused = False
            self.taken += _NEVER
            if self.taken >= _GRANT:
                self.grant()

    def part(self) -> None:
        """From its context, which no longer concerns it."""
        unlink, self.unlink = self.unlink, None
        if unlink is not None:
            unlink()

    def grant(self) -> None:
        if self.id in self._connection.streams:
            self._connection.send(Credit(self.id, self.taken))
            self.taken = 0


_NEVER = 1 << 60


class ClientConnection(Connection):
    """Usable at once: what is sent before the connection is made waits in the outbox.

    ``on_gone(connection, endpoint)`` is told when the connection is lost (endpoint "") or the server drains an endpoint,
    before the receivers hear of it.
    """

    def __init__(self, address: str, on_gone: Callable[[ClientConnection, str], None]) -> None:
        super().__init__(Hello(VERSION))
        self.address = address
        self.streams: dict[int, ConnectionStream] = {}
        self._on_gone = on_gone
        self._next = 0
        self._greeted = False
        self._pings: dict[int, asyncio.Future[None]] = {}
        self._error: DynamoError | None = None

    def open(self, endpoint: str, instance_id: int, request: Any, context: Context, receiver: StreamReceiver) -> ConnectionStream:
        self._next = number = self._next + 1
        stream = ConnectionStream(self, number, endpoint, receiver)
        self.streams[number] = stream
        self.send(
            Open(number, endpoint, instance_id, context.id(), request, context.deadline, context.metadata, context.trace_headers)
        )
        stream.unlink = context.on_cancel(lambda killed: stream.cancel(kill=killed))
        return stream

    def remove(self, stream: ConnectionStream) -> None:
        """Nothing more is delivered to it."""
        if self.streams.pop(stream.id, None) is not None:
            self._assemblers.pop(stream.id, None)
            stream.part()

    async def answered(self) -> None:
        """Wait until the server has answered a ping. Raises what the connection failed with."""
        if self.closed:
            raise self._error or CannotConnect(f"the connection to {self.address} is closed")
        self._next = token = self._next + 1
        self._pings[token] = future = self._loop.create_future()
        self.send(Ping(token))
        try:
            await future
        finally:
            self._pings.pop(token, None)

    def fail(self, error: DynamoError) -> None:
        """End every stream with ``error``. The first call decides."""
        if self._error is not None:
            return
        self._error = error
        self.closed = True
        self._on_gone(self, "")
        for ping in self._pings.values():
            if not ping.done():
                ping.set_exception(error)
        streams = tuple(self.streams.values())
        self.streams.clear()
        for stream in streams:
            stream.part()
            _tell_error(stream.receiver, error)

    def _receive(self, messages: list[Message]) -> None:
        streams = self.streams
        for message in messages:
            if type(message) is Data:
                stream = streams.get(message.stream)
                if stream is not None:
                    items = message.items
                    try:
                        stream.receiver.on_items(items)
                    except Exception:  # noqa: BLE001  # one receiver's bug must not reach the others
                        self._blame(stream)
                    stream.taken = taken = stream.taken + len(items)
                    if taken >= _GRANT:
                        stream.grant()
            else:
                self._handle(message)

    def _handle(self, message: Message) -> None:
        if isinstance(message, End):
            stream = self.streams.get(message.stream)
            if stream is not None:
                self.remove(stream)
                _tell_end(stream.receiver)
        elif isinstance(message, Error):
            stream = self.streams.get(message.stream)
            if stream is not None:
                self.remove(stream)
                error = wire_error(message)
                if message.code == UNSENDABLE:
                    error = type(error)(f"a response of {stream.endpoint} {error.message}")
                _tell_error(stream.receiver, error)
        elif isinstance(message, Part):
            self._part(message)
        elif isinstance(message, Hello):
            if message.version != VERSION:
                self.fail(CannotConnect(f"{self.address} speaks request plane version {message.version}, this process {VERSION}"))
                self.abort()
        elif isinstance(message, Pong):
            self._pong(message)
        elif isinstance(message, Ping):
            self.send(Pong(message.token))
        elif isinstance(message, Drain):
            self._on_gone(self, message.endpoint)
        else:
            raise ProtocolError(f"a server may not send {type(message).__name__}")

    def _pong(self, message: Pong) -> None:
        super()._pong(message)
        ping = self._pings.get(message.token)
        if ping is not None and not ping.done():
            ping.set_result(None)

    def _part(self, part: Part) -> None:
        stream = self.streams.get(part.stream)
        if stream is None:
            return  # of a killed stream
        message, cost = self._assemble(part)
        if message is not None:
            stream.taken += cost
            self._receive([message])

    def _blame(self, stream: ConnectionStream) -> None:
        _log.exception("the receiver of stream %d from %s failed; the stream is cancelled", stream.id, self.address)
        stream.cancel(kill=True)

    def _reject(self, message: Message, error: DynamoError) -> None:
        stream = self.streams.get(getattr(message, "stream", 0))
        if stream is not None:
            if isinstance(message, Open):
                error = type(error)(f"the request to {message.endpoint} {error.message}")
            self.remove(stream)
            _tell_error(stream.receiver, error)

    def _lost(self, error: Exception | None) -> None:
        reason = f": {error}" if error else ""
        self.fail(Disconnected(f"the connection to {self.address} was lost{reason}"))


def _tell_end(receiver: StreamReceiver) -> None:
    try:
        receiver.on_end()
    except Exception:  # noqa: BLE001  # one receiver's bug must not reach the others
        _log.exception("a stream's receiver failed")


def _tell_error(receiver: StreamReceiver, error: DynamoError) -> None:
    try:
        receiver.on_error(error)
    except Exception:  # noqa: BLE001  # one receiver's bug must not reach the others
        _log.exception("a stream's receiver failed")
