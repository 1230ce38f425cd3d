"""The metrics of a run's frontends as one, however often one of them is replaced."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from prometheus_client import Metric

from dynamo_core.runtime.exposition import cumulative, read_families, render, summed
from dynamo_core.supervisor.process import Process
from dynamo_core.supervisor.status import ask_all

__all__ = ["MetricsLedger"]

_WITHIN = 2.0


class _Told(NamedTuple):
    pid: int | None
    families: list[Metric]


class MetricsLedger:
    """Sums what frontends tell, and remembers what each told last.

    The series of a process that is gone are gone, but its counters and histograms stay in the sum as of the last scrape before:
    what a scrape has shown never falls. What it counted after that scrape is lost with it. A living process that does not answer
    in time counts with what it told last.
    """

    def __init__(self) -> None:
        self._last: dict[str, _Told] = {}
        self._retired: list[Metric] = []
        self._lock = asyncio.Lock()

    async def text(self, frontends: Sequence[Process]) -> str:
        """Prometheus text of all ``frontends``."""
        async with self._lock:
            pids = {process.name: process.pid for process in frontends}
            answers = await ask_all(frontends, "metrics", within=_WITHIN)
            texts = {name: str(answer.get("text", "")) for name, answer in answers.items() if isinstance(answer, dict)}
            return await asyncio.to_thread(self._take, pids, texts)

    def _take(self, pids: Mapping[str, int | None], texts: Mapping[str, str]) -> str:
        for name, told in tuple(self._last.items()):
            if pids.get(name) != told.pid:
                self._retired = summed({"": self._retired, name: cumulative(told.families)})
                del self._last[name]
        for name, text in texts.items():
            self._last[name] = _Told(pids[name], read_families(text))
        living = {name: told.families for name, told in self._last.items()}
        return render(summed({**living, "": self._retired})).body.decode()
