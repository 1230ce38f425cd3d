"""JSON lines both ways over one stream socket: events that nobody answers, and requests that somebody does.

Between a supervisor and each of its children, and between ``dynamo status`` and a supervisor's admin socket.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec

from dynamo_core.errors import DynamoError, ServiceUnavailable

__all__ = ["LINE_LIMIT", "Channel", "Message"]

LINE_LIMIT = 16 * 1024 * 1024
"""Bytes of one message; the status of a thousand workers is well below it."""

_log = logging.getLogger(__name__)


class Message(msgspec.Struct, frozen=True, omit_defaults=True):
    """An event (``id`` 0), a request (``id`` and ``name``) or the answer to one (``id``, no ``name``)."""

    name: str = ""
    id: int = 0
    data: dict[str, Any] = {}
    error: str | None = None


async def _refuse(name: str, _data: Mapping[str, Any]) -> dict[str, Any]:
    raise ServiceUnavailable(f"This end does not answer {name!r}.")


class Channel:
    """One end. :meth:`run` reads until the other end is gone; everything else may be called from the same event loop only."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        *,
        on_event: Callable[[str, dict[str, Any]], None] = lambda _name, _data: None,
        answer: Callable[[str, dict[str, Any]], Awaitable[dict[str, Any]]] = _refuse,
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._on_event = on_event
        self._answer = answer
        self._decoder = msgspec.json.Decoder(Message)
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._last_id = 0

    def tell(self, name: str, data: Mapping[str, Any] | None = None) -> None:
        """Send an event; lost without notice when the other end is gone."""
        self._send(Message(name, data=dict(data or {})))

    async def ask(self, name: str, data: Mapping[str, Any] | None = None, *, within: float) -> dict[str, Any]:
        """Send a request and wait ``within`` seconds for its answer. Raises :class:`ServiceUnavailable`."""
        self._last_id += 1
        future: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        request_id = self._last_id
        self._waiting[request_id] = future
        self._send(Message(name, request_id, dict(data or {})))
        try:
            async with asyncio.timeout(within):
                return await future
        except TimeoutError:
            raise ServiceUnavailable(f"No answer to {name!r} within {within:g} s.") from None
        finally:
            self._waiting.pop(request_id, None)

    async def run(self) -> None:
        """Read until the other end closes. What it sends that is no message ends the channel with one log line."""
        try:
            async with asyncio.TaskGroup() as tasks:
                while line := await self._reader.readline():
                    self._take(self._decoder.decode(line), tasks)
        except* (ConnectionError, msgspec.DecodeError, ValueError) as group:  # ValueError: a line over the limit
            _log.warning("control channel closed: %s", group.exceptions[0])
        finally:
            self.close()

    def close(self) -> None:
        self._writer.close()
        waiting, self._waiting = self._waiting, {}
        for future in waiting.values():
            if not future.done():
                future.set_exception(ServiceUnavailable("The process ended before it answered."))

    def _take(self, message: Message, tasks: asyncio.TaskGroup) -> None:
        if message.id == 0:
            self._on_event(message.name, message.data)
        elif message.name:
            tasks.create_task(self._reply(message))
        elif (future := self._waiting.get(message.id)) is not None and not future.done():
            if message.error is None:
                future.set_result(message.data)
            else:
                future.set_exception(ServiceUnavailable(message.error))

    async def _reply(self, message: Message) -> None:
        try:
            self._send(Message(id=message.id, data=await self._answer(message.name, message.data)))
        except DynamoError as error:
            self._send(Message(id=message.id, error=error.message))
        except Exception:  # noqa: BLE001 - the other end waits for an answer whatever went wrong here
            _log.exception("answering %r failed", message.name)
            self._send(Message(id=message.id, error=f"Answering {message.name!r} failed; the log has the details."))

    def _send(self, message: Message) -> None:
        if not self._writer.is_closing():
            self._writer.write(msgspec.json.encode(message) + b"\n")
