"""A child's side of its supervisor: it says how far it is and answers questions. Started by hand it speaks to the user."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

import msgspec

from dynamo_core.errors import ServiceUnavailable
from dynamo_core.supervisor.channel import LINE_LIMIT, Channel

__all__ = ["Control", "ForegroundControl", "SupervisedControl"]


class Control(Protocol):
    def stage(self, text: str) -> None:
        """What the process does until it is ready; shown as progress."""

    def ready(self, facts: msgspec.Struct, report: Callable[[], msgspec.Struct]) -> None:
        """It serves. ``report`` makes the answer to ``status``; it is called on the event loop."""

    def answer(self, name: str, function: Callable[[], Awaitable[dict[str, Any]]]) -> None:
        """Answer the supervisor's question ``name`` with what this returns; its ``DynamoError`` is the answer, too."""


class SupervisedControl:
    """Over the socket that the supervisor handed down. ``vitals``, how many tasks there are, is answered by itself."""

    def __init__(self, fd: int) -> None:
        self._socket = socket.socket(fileno=fd)
        self._socket.set_inheritable(False)
        self._channel: Channel | None = None
        self._conversation: asyncio.Task[None] | None = None
        self._report: Callable[[], msgspec.Struct] | None = None
        self._answers: dict[str, Callable[[], Awaitable[dict[str, Any]]]] = {}

    async def start(self) -> None:
        reader, writer = await asyncio.open_unix_connection(sock=self._socket, limit=LINE_LIMIT)
        self._channel = Channel(reader, writer, answer=self._answer)
        self._conversation = asyncio.create_task(self._channel.run(), name="control")

    async def close(self) -> None:
        if self._conversation is not None:
            self._conversation.cancel()
            await asyncio.gather(self._conversation, return_exceptions=True)

    def stage(self, text: str) -> None:
        self._tell("stage", {"text": text})

    def ready(self, facts: msgspec.Struct, report: Callable[[], msgspec.Struct]) -> None:
        self._report = report
        self._tell("ready", msgspec.to_builtins(facts))

    def answer(self, name: str, function: Callable[[], Awaitable[dict[str, Any]]]) -> None:
        self._answers[name] = function

    def failed(self, message: str, *, explained: bool) -> None:
        """The process ends because of something that the user can put right. ``explained``: its last lines say more."""
        self._tell("failed", {"message": message, "explained": explained})

    def _tell(self, name: str, data: Mapping[str, Any]) -> None:
        if self._channel is not None:
            self._channel.tell(name, data)

    async def _answer(self, name: str, _data: Mapping[str, Any]) -> dict[str, Any]:
        if name in self._answers:
            return await self._answers[name]()
        if name == "vitals":
            return {"tasks": len(asyncio.all_tasks())}
        if name != "status" or self._report is None:
            raise ServiceUnavailable(f"This process does not answer {name!r}.")
        answer: dict[str, Any] = msgspec.to_builtins(self._report())
        return answer


class ForegroundControl:
    """Plain lines on standard error."""

    def __init__(self, name: str) -> None:
        self._name = name

    def stage(self, text: str) -> None:
        print(f"{self._name}: {text}", file=sys.stderr, flush=True)  # noqa: T201 - the command's own output

    def ready(self, facts: msgspec.Struct, report: Callable[[], msgspec.Struct]) -> None:  # noqa: ARG002 - nobody asks
        print(f"{self._name}: ready", file=sys.stderr, flush=True)  # noqa: T201

    def answer(self, name: str, function: Callable[[], Awaitable[dict[str, Any]]]) -> None:
        """Nobody asks."""
