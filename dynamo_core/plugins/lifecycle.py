"""Start-up and shutdown hooks: awaited in plugin order, and in reverse order on the way down."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from dynamo_core.plugins.faults import Faults
from dynamo_core.plugins.hooks import blame
from dynamo_core.plugins.installed import PluginInfo

__all__ = ["Lifecycle", "Participant"]


class Participant(NamedTuple):
    info: PluginInfo
    startup: Callable[[str], Any] | None
    """Of the process's name; configuration is bound already."""
    shutdown: Callable[[str], Any] | None


class Lifecycle:
    """Remembers whose start-up succeeded. Plain functions run on the event loop: they must not block for long."""

    __slots__ = ("_faults", "_participants", "_started")

    def __init__(self, participants: Sequence[Participant], faults: Faults) -> None:
        self._participants = tuple(participants)
        self._faults = faults
        self._started: list[Participant] = []

    async def startup(self, process: str) -> None:
        """Raises :class:`~dynamo_core.errors.StartupError` for the first that fails, after shutting down those before it."""
        for participant in self._participants:
            try:
                await _call(participant.startup, process)
            except Exception as error:  # noqa: BLE001  # a stranger's code: named, and the process does not start
                await self.shutdown(process)
                blame(participant.info, "fails in dynamo_startup", error)
            self._started.append(participant)

    async def succeed(self, earlier: Lifecycle, process: str) -> None:
        """Take over from ``earlier`` on a reload: start the plugins that it did not have, and leave it those that we lack, for
        its own :meth:`shutdown`. A plugin that both have is neither started nor shut down.

        Raises :class:`~dynamo_core.errors.StartupError` with everything as it was.
        """
        running = {participant.info.name for participant in earlier._started}
        for participant in self._participants:
            if participant.info.name not in running:
                try:
                    await _call(participant.startup, process)
                except Exception as error:  # noqa: BLE001  # a stranger's code: named, and the reload is off
                    await self.shutdown(process)
                    blame(participant.info, "fails in dynamo_startup", error)
                self._started.append(participant)
        ours = {participant.info.name for participant in self._participants}
        self._started = list(self._participants)
        earlier._started = [participant for participant in earlier._started if participant.info.name not in ours]

    async def shutdown(self, process: str) -> None:
        """Shut down what was started, once. What raises is logged and counted, and the others still get their turn."""
        while self._started:
            participant = self._started.pop()
            try:
                await _call(participant.shutdown, process)
            except Exception as error:  # noqa: BLE001  # the process ends anyway, the other plugins want to be told
                self._faults.count(participant.info.name, "dynamo_shutdown", error)


async def _call(function: Callable[[str], Any] | None, process: str) -> None:
    if function is not None:
        result = function(process)
        if inspect.isawaitable(result):
            await result
