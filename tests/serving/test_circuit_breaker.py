"""Workers that fail repeatedly are left out, tried with one request, and let back in."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from dynamo_core.contracts import ModelCard, WorkerView
from dynamo_core.errors import CannotConnect, EngineError, InvalidRequest
from dynamo_core.serving.circuit_breaker import CircuitBreaker

BROKEN = CannotConnect("no answer")
WORKERS = {number: WorkerView(number, ModelCard(name="m", path="")) for number in (1, 2)}


class Clock:
    """Stands for the loop: its time, and timers that fire when it is moved."""

    def __init__(self) -> None:
        self.now = 100.0
        self.timers: list[tuple[float, Any]] = []

    def time(self) -> float:
        return self.now

    def call_later(self, delay: float, callback: Any) -> Any:
        entry = (self.now + delay, callback)
        self.timers.append(entry)
        clock = self

        class Handle:
            def cancel(self) -> None:
                if entry in clock.timers:
                    clock.timers.remove(entry)

        return Handle()

    def move(self, seconds: float) -> None:
        self.now += seconds
        for entry in [entry for entry in self.timers if entry[0] <= self.now]:
            self.timers.remove(entry)
            entry[1]()


@pytest.fixture
async def breaker() -> Any:
    made = CircuitBreaker(3, 5.0, lambda: None)
    made._loop = Clock()  # type: ignore[assignment]
    return made


def offered(breaker: Any) -> list[int]:
    return sorted(breaker.offered(WORKERS))


async def test_failures_in_a_row_open_it_and_an_answer_in_between_does_not(breaker: Any) -> None:
    for _ in range(2):
        breaker.failed(1, BROKEN)
    breaker.answered(1)
    for _ in range(2):
        breaker.failed(1, EngineError("boom"))
    assert offered(breaker) == [1, 2]
    breaker.failed(1, BROKEN)
    assert (offered(breaker), breaker.left_out(), breaker.trips) == ([2], {1}, 1)


async def test_one_request_tries_it_and_decides(breaker: Any) -> None:
    for _ in range(3):
        breaker.failed(1, BROKEN)
    breaker._loop.move(5)
    assert offered(breaker) == [1, 2]
    breaker.placed(1)
    assert offered(breaker) == [2]  # the others wait for what it does
    breaker.failed(1, BROKEN)
    breaker._loop.move(5)
    assert offered(breaker) == [2]  # twice as long
    breaker._loop.move(5)
    breaker.placed(1)
    breaker.ended(1)  # cancelled by its client: proves nothing
    assert offered(breaker) == [1, 2]
    breaker.placed(1)
    breaker.answered(1)
    assert (offered(breaker), breaker.left_out()) == ([1, 2], frozenset())


async def test_what_is_not_the_workers_fault_and_a_limit_of_zero_count_for_nothing(breaker: Any) -> None:
    for _ in range(9):
        breaker.failed(1, InvalidRequest("bad"))
    assert offered(breaker) == [1, 2]
    never = CircuitBreaker(0, 5.0, lambda: None)
    for _ in range(9):
        never.failed(1, BROKEN)
    assert offered(never) == [1, 2]


async def test_when_all_are_left_out_all_are_offered(breaker: Any) -> None:
    for worker in (1, 2):
        for _ in range(3):
            breaker.failed(worker, BROKEN)
    assert offered(breaker) == [1, 2]
    breaker.forget(1)
    assert offered(breaker) == [1]


async def test_a_worker_that_refuses_gets_no_requests_until_it_was_tried(stage: Any) -> None:
    made = stage(workers=(1, 2), breaker_failures=2, breaker_seconds=0.05)
    made.workers.refuse[1] = BROKEN
    for _ in range(4):  # the router always wants worker 1; the request moves on to 2
        made.generate()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    assert [stream.worker_id for stream in made.streams] == [1, 2, 1, 2, 2, 2]
    assert made.model.left_out == {1}
    del made.workers.refuse[1]
    await asyncio.sleep(0.06)
    made.generate()
    await asyncio.sleep(0)
    trial = made.streams[-1]
    assert trial.worker_id == 1
    made.generate()
    await asyncio.sleep(0)
    assert made.streams[-1].worker_id == 2
    trial.items(ord("x"))
    made.generate()
    await asyncio.sleep(0)
    assert (made.streams[-1].worker_id, made.model.left_out) == (1, frozenset())
    made.model.close()


async def test_a_client_that_names_a_worker_gets_it_all_the_same(stage: Any) -> None:
    made = stage(workers=(1, 2), breaker_failures=1)
    made.workers.refuse[1] = BROKEN
    made.generate()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    del made.workers.refuse[1]
    made.router.decide = lambda requests, workers: [made.route(request.pinned) for request in requests]
    made.generate(pinned=1)
    await asyncio.sleep(0)
    assert made.streams[-1].worker_id == 1
    made.model.close()
