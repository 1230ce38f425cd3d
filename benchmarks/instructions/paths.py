"""The counted paths. As a program it counts in a process of its own: ``python -m benchmarks.instructions.paths METHOD EXTRA``."""

from __future__ import annotations

import json
import sys
from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol

from benchmarks.instructions.house import House, StoppableLoop

__all__ = ["Counter", "Path", "count_all"]

STREAMS, TOKENS = 64, 16
REQUESTS = 24


class Counter(Protocol):
    def start(self) -> None: ...

    def stop(self, name: str) -> None: ...


async def _streaming(house: House, counter: Counter, extra: float) -> int:
    """A token of a stream, when one step has one for each of 64."""
    await house.connect(STREAMS)
    house.ask(20, TOKENS + 20, stream=True)
    await house.settle()
    await house.steps(10)
    before = house.events
    counter.start()
    for _ in range(TOKENS):
        if extra:
            work(round(extra * STREAMS))
        await house.steps(1)
    counter.stop("stream")
    counted = house.events - before
    await house.steps(11)
    if counted != STREAMS * TOKENS:
        raise RuntimeError(f"{counted} events instead of {STREAMS * TOKENS}")
    return counted


async def _unary(house: House, counter: Counter, extra: float) -> int:
    """A request of 200 words and one token, of 24 that come together."""
    await house.connect(REQUESTS)
    for _ in range(2):
        house.ask(200, 1, stream=False)
        await house.settle()
        await house.steps(1)
    before = house.answers
    counter.start()
    if extra:
        work(round(extra * REQUESTS))
    house.ask(200, 1, stream=False)
    await house.settle()
    await house.steps(1)
    counter.stop("request")
    if house.answers - before != REQUESTS:
        raise RuntimeError(f"{house.answers - before} answers instead of {REQUESTS}")
    return REQUESTS


def reference(counter: Counter) -> int:
    """Work that never changes: it tells interpreters that were built otherwise, and measures additional work out."""
    work(2000)
    counter.start()
    work(2000)
    counter.stop("reference")
    return 2000


def work(pieces: int) -> int:
    """What a plain loop over plain objects costs."""
    values: dict[str, int] = {}
    parts = [b""] * 8
    return sum(_piece(values, parts, number) for number in range(pieces))


def _piece(values: dict[str, int], parts: list[bytes], number: int) -> int:
    values[str(number & 63)] = number
    parts[number & 7] = b"%d" % number
    return len(b"".join(parts)) + len(values)


Path = Callable[[House, Counter, float], Awaitable[int]]
PATHS: Mapping[str, Path] = {"stream": _streaming, "request": _unary}


def count_all(counter: Counter, extra: Mapping[str, float] | None = None) -> dict[str, int]:
    """Run every path once unseen and once counted; returns units (tokens, requests) by name.

    ``extra``: pieces of :func:`work` to add to each unit of a path, to see that it is noticed.
    """

    async def run() -> dict[str, int]:
        async with House.open(loop) as house:
            units = {}
            for name, path in PATHS.items():
                pieces = (extra or {}).get(name, 0.0)
                await path(house, _Nobody(), pieces)
                units[name] = await path(house, counter, pieces)
            return units

    loop = StoppableLoop()
    try:
        units = loop.run_until_complete(run())
    finally:
        loop.close()
    return {"reference": reference(counter), **units}


class _Nobody:
    def start(self) -> None: ...

    def stop(self, name: str) -> None: ...


def main() -> None:
    from benchmarks.instructions.bytecode import BytecodeCounter
    from benchmarks.instructions.valgrind import ClientRequests

    how, extra = sys.argv[1], json.loads(sys.argv[2])
    if how == "callgrind":
        json.dump(count_all(ClientRequests(), extra), sys.stdout)
        return
    counter = BytecodeCounter()
    units = count_all(counter, extra)
    json.dump({name: counter.counts[name] / units[name] for name in units}, sys.stdout)


if __name__ == "__main__":
    main()
