"""Streams that are held open: paced by their engine, or all but idle. Gaps between their events, and their cost by the clock."""

from __future__ import annotations

import select
import time
from array import array
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from benchmarks.peers.connection import Connection
from benchmarks.peers.load import Source

__all__ = ["OPENING_SECONDS", "Gaps", "HeldStreams", "Observed"]

_OPENED_AT_ONCE = 50
_OPENED_A_SECOND = 1000.0
"""No faster, so that what is measured is streams that run, not a queue of connections."""
OPENING_SECONDS = 60.0
"""By far enough to open them all."""


class Gaps:
    """Times between the events of one stream, of all streams, in buckets of 0.1 ms: constant memory however long the run."""

    _BUCKETS = 200_000

    def __init__(self) -> None:
        self._counts = array("Q", bytes(8 * self._BUCKETS))

    def add(self, seconds: float, count: int = 1) -> None:
        self._counts[min(int(seconds * 10_000), self._BUCKETS - 1)] += count

    def percentiles_ms(self, *shares: float) -> list[float]:
        return _at(((i, n) for i, n in enumerate(self._counts) if n), shares)

    def jitter_ms(self, *shares: float) -> list[float]:
        """Of the distance between a gap and the median gap, either way."""
        (middle,) = self.percentiles_ms(0.5)
        away: dict[int, int] = {}
        for i, n in enumerate(self._counts):
            if n:
                distance = abs(i - round(middle * 10))
                away[distance] = away.get(distance, 0) + n
        return _at(sorted(away.items()), shares)


def _at(counts: Iterable[tuple[int, int]], shares: Sequence[float]) -> list[float]:
    """Values of the ascending shares; ``counts`` ascends in tenths."""
    pairs = list(counts)
    total, seen, wanted, found = sum(n for _, n in pairs), 0, list(shares), list[float]()
    for i, n in pairs:
        seen += n
        while wanted and seen >= wanted[0] * total:
            found.append(i / 10)
            wanted.pop(0)
    return found + [0.0] * len(wanted)


class Observed(NamedTuple):
    """Between the two calls of the probe."""

    open: int
    """Streams that had text and were not broken off."""
    failed: int
    events: int
    reads: int
    """Reads that had some."""
    seconds: float
    cpu_seconds: float
    """Of the load itself."""
    gaps: Gaps
    why_failed: str


class HeldStreams:
    """Opens one stream a connection, waits until they have settled, watches them for a while, and leaves."""

    def __init__(self, port: int, source: Source, connections: int) -> None:
        self._port = port
        self._source = source
        self._count = connections
        self._poller = select.epoll(connections)
        self._links: dict[int, Connection] = {}
        self._events = self._reads = self._failed = 0
        self._begun: set[int] = set()
        self._why = ""

    def run(self, settle: float, seconds: float, probe: Callable[[], None]) -> Observed:
        """``settle``: seconds after the last stream was opened."""
        try:
            return self._run(settle, seconds, probe)
        finally:
            for link in self._links.values():
                link.close()
            self._poller.close()

    def _run(self, settle: float, seconds: float, probe: Callable[[], None]) -> Observed:
        began = time.perf_counter()
        for number in range(self._count):
            link = Connection(self._port)
            self._links[link.fd] = link
            self._poller.register(link.fd, select.EPOLLIN)
            link.ask(self._source.request(number), time.perf_counter())
            if number % _OPENED_AT_ONCE == _OPENED_AT_ONCE - 1:
                self._watch(began + (number + 1) / _OPENED_A_SECOND, None)
        self._watch(time.perf_counter() + settle, None)
        gaps = Gaps()
        for link in self._links.values():
            link.last = 0.0
        probe()
        self._events, self._reads, cpu, begun = 0, 0, time.process_time(), time.perf_counter()
        self._watch(begun + seconds, gaps)
        ended, spent = time.perf_counter(), time.process_time() - cpu
        probe()
        streaming = len(self._begun & self._links.keys())
        self._failed += len(self._links) - streaming
        return Observed(streaming, self._failed, self._events, self._reads, ended - begun, spent, gaps, self._why)

    def _watch(self, until: float, gaps: Gaps | None) -> None:
        """Reads at least once, however late it is."""
        left = until - time.perf_counter()
        while True:
            for fd, _ in self._poller.poll(max(0.0, left)):
                link = self._links[fd]
                data = link.receive()
                if data is None:
                    continue
                now, before = time.perf_counter(), link.texts
                if not data or link.take(data):
                    self._ended(link, data, now)
                    continue
                news = link.texts - before
                if news:
                    self._begun.add(link.fd)
                    self._events += news
                    self._reads += 1
                    if gaps is not None and link.last:
                        gaps.add(now - link.last)
                        if news > 1:
                            gaps.add(0.0, news - 1)
                    link.last = now
            if (left := until - time.perf_counter()) <= 0:
                return

    def _ended(self, link: Connection, data: bytes, now: float) -> None:
        """The next stream takes the place of one that is complete."""
        if data and link.ok:
            link.ask(self._source.request(0), now)
            return
        self._failed += 1
        self._why = self._why or (link.body()[:200] if data else "the server closed the connection")
        self._poller.unregister(link.fd)
        del self._links[link.fd]
        link.close()
