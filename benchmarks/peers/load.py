"""The load: connections over loopback that ask again as soon as they have their answer.

One thread around ``epoll`` and plain sockets, about 4 µs a streamed token, most of it the kernel's: on two cores the servers
decide the throughput. Its own CPU time is part of every result.
"""

from __future__ import annotations

import select
import statistics
import time
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from benchmarks.peers.connection import Connection

__all__ = ["GRACE_SECONDS", "Answers", "ClosedLoop", "Source", "percentile"]

GRACE_SECONDS = 30.0
"""After the end, for the answers that were asked for before."""


class Source(Protocol):
    """What the connections ask."""

    wants_answers: bool
    streams: bool

    def request(self, connection: int) -> bytes:
        """The whole HTTP request."""
        ...

    def answered(self, connection: int, body: str) -> None:
        """Called with a good answer when ``wants_answers``, before the connection's next ``request``."""
        ...


class Answers(NamedTuple):
    """What the load saw; times in seconds."""

    completed: int
    failed: int
    reads: int
    """Reads that had text, of completed streams: fewer than tokens where a server writes several at once."""
    seconds: float
    """From the first request to the last answer."""
    cpu_seconds: float
    """Of the load itself."""
    first: list[float]
    """Request to first text, of streams."""
    whole: list[float]
    """Request to the end of the answer."""
    why_failed: str
    """Of the first that failed."""


class ClosedLoop:
    """``run`` asks for some seconds; every connection then finishes the request that it is at."""

    def __init__(self, port: int, source: Source, connections: int) -> None:
        self._port = port
        self._source = source
        self._streams = source.streams
        self._poller = select.epoll(connections)
        self._links: dict[int, tuple[int, Connection]] = {}
        self._connections = connections
        self._deadline = 0.0
        self._completed = self._failed = self._reads = 0
        self._first: list[float] = []
        self._whole: list[float] = []
        self._why = ""

    def run(self, seconds: float) -> Answers:
        try:
            return self._run(seconds)
        finally:
            for _, link in self._links.values():
                link.close()
            self._poller.close()

    def _run(self, seconds: float) -> Answers:
        for number in range(self._connections):
            self._connect(number)
        cpu, begun = time.process_time(), time.perf_counter()
        self._deadline = begun + seconds
        for number, link in list(self._links.values()):
            link.ask(self._source.request(number), time.perf_counter())
        while self._links and time.perf_counter() < self._deadline + GRACE_SECONDS:
            for fd, _ in self._poller.poll(1.0):
                self._ready(fd)
        ended, spent = time.perf_counter(), time.process_time() - cpu
        for fd in list(self._links):
            self._failure(f"no answer {GRACE_SECONDS:.0f} s after the end")
            self._drop(fd)
        return Answers(
            self._completed, self._failed, self._reads, ended - begun, spent, self._first, self._whole, self._why
        )  # fmt: skip

    def _ready(self, fd: int) -> None:
        number, link = self._links[fd]
        data = link.receive()
        if data is None:
            return
        now = time.perf_counter()
        if not data:
            self._failure("the server closed the connection")
            self._drop(fd)
            if now < self._deadline:
                link = self._connect(number)
                link.ask(self._source.request(number), now)
            return
        done = link.take(data)
        if link.texts and not link.first:
            link.first = now
        if done:
            self._account(number, link, now)
            if now < self._deadline:
                link.ask(self._source.request(number), now)
            else:
                self._drop(fd)

    def _account(self, number: int, link: Connection, now: float) -> None:
        if not link.ok or (self._streams and not link.texts):
            self._failure(link.body())
            return
        self._completed += 1
        self._whole.append(now - link.asked)
        if self._streams:
            self._reads += link.reads
            if link.first:
                self._first.append(link.first - link.asked)
        if link.keep:
            self._source.answered(number, link.body())

    def _failure(self, why: str) -> None:
        self._failed += 1
        self._why = self._why or why[:200]

    def _connect(self, number: int) -> Connection:
        link = Connection(self._port, keep=self._source.wants_answers)
        self._links[link.fd] = (number, link)
        self._poller.register(link.fd, select.EPOLLIN)
        return link

    def _drop(self, fd: int) -> None:
        self._poller.unregister(fd)
        self._links.pop(fd)[1].close()


def percentile(values: Sequence[float], share: float) -> float:
    """0.0 of nothing."""
    if not values:
        return 0.0
    if share == 0.5:
        return statistics.median(values)
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
