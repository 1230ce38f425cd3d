"""The serving end of a connection."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Mapping
from typing import Any

from dynamo_core.contracts.context import Context
from dynamo_core.contracts.planes import RequestHandler
from dynamo_core.errors import CannotConnect, DeadlineExceeded, DynamoError, EngineError, EngineShutdown, ProtocolError
from dynamo_core.runtime.logging import REQUEST_ID
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
    Hello,
    Message,
    Open,
    Part,
    Ping,
    Pong,
    error_message,
)

__all__ = ["Registration", "ServerConnection", "ServerStream"]

_log = logging.getLogger(__name__)


class Registration:
    """An endpoint that is served, and how many of its requests run."""

    __slots__ = ("_idle", "closed", "endpoint", "handler", "running")

    def __init__(self, endpoint: str, handler: RequestHandler) -> None:
        self.endpoint = endpoint
        self.handler = handler
        self.closed = False
        """New requests are refused."""
        self.running = 0
        self._idle: asyncio.Event | None = None

    def finished(self) -> None:
        self.running -= 1
        if self.running == 0 and self._idle is not None:
            self._idle.set()

    async def idle(self) -> None:
        """Wait until nothing runs."""
        while self.running:
            self._idle = self._idle or asyncio.Event()
            self._idle.clear()
            await self._idle.wait()


class ServerStream:
    """The sink of one request. Items beyond the client's credit are held here, in order."""

    __slots__ = (
        "_batch", "_connection", "_credit", "_done", "_held", "_id", "_last", "_registration", "_turn", "_waiters", "context",
    )  # fmt: skip

    def __init__(self, connection: ServerConnection, id: int, context: Context, registration: Registration) -> None:
        self.context = context
        self._connection = connection
        self._id = id
        self._registration = registration
        self._credit = WINDOW
        """0 once the stream is done, so that :meth:`item` needs one test."""
        self._turn = -1
        self._batch: list[Any] = []
        self._held: deque[Any] = deque()
        self._last: Message | None = None
        self._done = False
        self._waiters: list[asyncio.Future[None]] = []

    @property
    def endpoint(self) -> str:
        return self._registration.endpoint

    def item(self, value: Any) -> None:
        if self._credit > 0:
            self._credit -= 1
            connection = self._connection
            if self._turn == connection.turn:
                self._batch.append(value)
            else:
                self._turn = connection.turn
                self._batch = batch = [value]
                connection.send(Data(self._id, batch))
        elif not self._done and self._last is None:
            self._held.append(value)

    def end(self) -> None:
        self._finish_with(End(self._id))

    def error(self, error: DynamoError) -> None:
        self._finish_with(error_message(self._id, error))

    async def ready(self) -> None:
        if self._done:
            await asyncio.sleep(0)  # a handler that goes on all the same lets others run
        while self._credit <= 0 and not self._done:
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            await waiter

    def grant(self, amount: int) -> None:
        """The client takes ``amount`` more."""
        if self._done:
            return
        self._credit += amount
        held = self._held
        if held:
            count = min(self._credit, len(held))
            if count > 0:
                self._credit -= count
                self._turn = -1
                self._connection.send(Data(self._id, [held.popleft() for _ in range(count)]))
            if held:
                return
            if self._last is not None:
                self._complete(self._last)
                return
        if self._credit > 0:
            self._wake()

    def charge(self, amount: int) -> None:
        if not self._done:
            self._credit -= amount

    def kill(self) -> None:
        """Nobody listens any more: end the request, deliver nothing."""
        if not self._done:
            self._close()
            self._held.clear()
        self.context.kill()

    def _finish_with(self, message: Message) -> None:
        if self._done or self._last is not None:
            return
        if self._held:
            self._last = message
        else:
            self._complete(message)

    def _complete(self, message: Message) -> None:
        self._connection.send(message)
        self._close()

    def _close(self) -> None:
        self._done = True
        self._credit = 0
        self._connection.streams.pop(self._id, None)
        self._registration.finished()
        self._wake()

    def _wake(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)


class ServerConnection(Connection):
    """``endpoints`` is the plane's own table and changes under us; ``connections`` is where this one is listed while open."""

    def __init__(self, instance_id: int, endpoints: Mapping[str, Registration], connections: set[ServerConnection]) -> None:
        super().__init__(Hello(VERSION, instance_id))
        self.streams: dict[int, ServerStream] = {}
        self._instance_id = instance_id
        self._endpoints = endpoints
        self._connections = connections
        self._greeted = False
        connections.add(self)

    def drain(self, endpoint: str) -> None:
        self.send(Drain(endpoint))

    def shut_down(self, error: DynamoError) -> None:
        """End what runs with ``error``, then close."""
        for stream in tuple(self.streams.values()):
            self.send(error_message(stream._id, error))  # noqa: SLF001  # one object in two classes
            stream.kill()
        self.close()

    def _receive(self, messages: list[Message]) -> None:
        for message in messages:
            self._handle(message)

    def _handle(self, message: Message, *, whole: bool = True) -> None:
        kind = type(message)
        if not self._greeted and kind is not Hello:
            raise ProtocolError("the first message was no greeting")
        if isinstance(message, Credit):
            stream = self.streams.get(message.stream)
            if stream is not None:
                stream.grant(message.amount)
        elif isinstance(message, Open):
            self._open(message)
        elif isinstance(message, Cancel):
            self._cancel(message)
        elif isinstance(message, Part) and whole:
            complete, _ = self._assemble(message)
            if complete is not None:
                self._handle(complete, whole=False)
        elif isinstance(message, Ping):
            self.send(Pong(message.token))
        elif isinstance(message, Pong):
            self._pong(message)
        elif isinstance(message, Hello):
            self._greet(message)
        else:
            raise ProtocolError(f"a client may not send {kind.__name__}")

    def _greet(self, message: Hello) -> None:
        self._greeted = True
        if message.version != VERSION:
            self.close()  # our own greeting is on its way and tells the client why

    def _open(self, message: Open) -> None:
        if message.stream in self.streams:
            raise ProtocolError(f"stream {message.stream} was opened twice")
        registration = self._endpoints.get(message.endpoint)
        refusal = self._refusal(message, registration)
        if refusal is not None or registration is None:
            self.send(error_message(message.stream, refusal or CannotConnect("refused")))
            return
        context = Context(message.request_id, message.metadata, deadline=message.deadline, trace_headers=message.trace_headers)
        stream = ServerStream(self, message.stream, context, registration)
        self.streams[message.stream] = stream
        registration.running += 1
        token = REQUEST_ID.set(message.request_id)
        try:
            registration.handler(message.request, context, stream)
        except DynamoError as error:
            stream.error(error)
        except Exception:  # noqa: BLE001  # a handler's bug is that request's failure
            _log.exception("the handler of %s failed; request %s", message.endpoint, message.request_id)
            stream.error(EngineError(f"the handler of {message.endpoint} failed"))
        finally:
            REQUEST_ID.reset(token)

    def _refusal(self, message: Open, registration: Registration | None) -> DynamoError | None:
        if message.instance_id not in {0, self._instance_id}:
            return CannotConnect(f"instance {message.instance_id:x} is gone; another process has its address")
        if registration is None:
            return CannotConnect(f"instance {self._instance_id:x} does not serve {message.endpoint}")
        if registration.closed:
            return EngineShutdown(f"instance {self._instance_id:x} of {message.endpoint} is shutting down")
        if message.deadline is not None and message.deadline <= time.time():
            return DeadlineExceeded("the deadline of the request had passed when it arrived")
        return None

    def _cancel(self, message: Cancel) -> None:
        stream = self.streams.get(message.stream)
        if message.kill:
            self._forget(message.stream)  # its last items may be waiting although the handler is done
            if stream is not None:
                stream.kill()
        elif stream is not None:
            stream.context.stop_generating()

    def _charge(self, stream: int, amount: int) -> None:
        found = self.streams.get(stream)
        if found is not None:
            found.charge(amount)

    def _reject(self, message: Message, error: DynamoError) -> None:
        number: int = getattr(message, "stream", 0)
        stream = self.streams.get(number)
        name = "a response" if stream is None else f"a response of {stream.endpoint}"
        _log.error("%s %s", name, error.message)
        self.send(error_message(number, EngineError(error.message, code=UNSENDABLE)))
        if stream is not None:
            stream.kill()

    def _lost(self, error: Exception | None) -> None:
        del error
        self._connections.discard(self)
        for stream in tuple(self.streams.values()):
            stream.kill()

    def close(self) -> None:
        super().close()
        self._connections.discard(self)
