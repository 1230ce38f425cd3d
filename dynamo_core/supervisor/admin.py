"""The admin socket of a run: one address for all its processes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from dynamo_core.errors import InvalidRequest, ServiceUnavailable, StartupError
from dynamo_core.supervisor.channel import LINE_LIMIT, Channel
from dynamo_core.supervisor.ledger import MetricsLedger
from dynamo_core.supervisor.process import Process
from dynamo_core.supervisor.status import ReloadReport, RunStatus, ask_all

__all__ = ["ADMIN_SOCKET", "AdminServer", "ask_admin"]

ADMIN_SOCKET = "admin.sock"
"""In the folder of a run."""


class AdminServer:
    """Answers ``status``, ``metrics`` (the sum over frontends), ``reload``, and ``fan_out`` with
    ``{"name": …, "data": …, "kind": "frontend"}``: the same question to every process of a kind, or to those that ``processes``
    names, within ``within`` seconds (2), answered with ``{"answers": {process: answer}, "errors": {process: sentence}}``.
    """

    def __init__(
        self,
        processes: Sequence[Process],
        status: Callable[[], Awaitable[RunStatus]],
        reload: Callable[[], Awaitable[ReloadReport]] | None = None,
    ) -> None:
        self._processes = processes
        self._status = status
        self._reload = reload
        self._ledger = MetricsLedger()
        self._server: asyncio.Server | None = None
        self._conversations: set[asyncio.Task[None]] = set()

    async def start(self, path: Path) -> None:
        """Raises :class:`StartupError`, as when the disk is full."""
        try:
            self._server = await asyncio.start_unix_server(self._converse, path, limit=LINE_LIMIT)
        except OSError as error:
            reason = error.strerror or str(error)
            raise StartupError(
                f"The admin socket {path} cannot be made ({reason}): name another folder with DYN_RUN_DIR."
            ) from None

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        for task in self._conversations:
            task.cancel()
        await asyncio.gather(*self._conversations, return_exceptions=True)

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is not None:
            self._conversations.add(task)
            task.add_done_callback(self._conversations.discard)
        await Channel(reader, writer, answer=self._answer).run()

    async def _answer(self, name: str, data: Mapping[str, Any]) -> dict[str, Any]:
        if name == "status":
            answer: dict[str, Any] = msgspec.to_builtins(await self._status())
            return answer
        if name == "metrics":
            return {"text": await self._ledger.text([process for process in self._processes if process.kind == "frontend"])}
        if name == "reload" and self._reload is not None:
            report: dict[str, Any] = msgspec.to_builtins(await self._reload())
            return report
        if name == "fan_out":
            return await self._fan_out(data)
        raise InvalidRequest(f"The admin socket does not know {name!r}: ask status, metrics, reload or fan_out.")

    async def _fan_out(self, data: Mapping[str, Any]) -> dict[str, Any]:
        kind = data.get("kind", "frontend")
        processes = [process for process in self._processes if process.kind == kind]
        if "processes" in data:
            processes = [process for process in processes if process.name in data["processes"]]
        found = await ask_all(processes, str(data.get("name", "")), data.get("data"), within=float(data.get("within", 2.0)))
        return {
            "answers": {name: answer for name, answer in found.items() if isinstance(answer, dict)},
            "errors": {name: answer.message for name, answer in found.items() if isinstance(answer, ServiceUnavailable)},
        }


async def ask_admin(path: str, name: str, data: Mapping[str, Any] | None = None, *, within: float = 5.0) -> dict[str, Any]:
    """One question to a run's admin socket, answered ``within`` seconds. Raises :class:`StartupError` when nobody answers."""
    try:
        reader, writer = await asyncio.open_unix_connection(path, limit=LINE_LIMIT)
    except OSError:
        raise StartupError(f"The server behind {path} is gone: start it again with `dynamo serve`.") from None
    channel = Channel(reader, writer)
    conversation = asyncio.create_task(channel.run())
    try:
        return await channel.ask(name, data, within=within)
    except ServiceUnavailable as error:
        raise StartupError(f"The server behind {path} gave no answer ({error.message.rstrip('.')}): try again.") from None
    finally:
        conversation.cancel()
        await asyncio.gather(conversation, return_exceptions=True)
