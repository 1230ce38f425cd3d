"""Workers that fail again and again are left out for a while, then tried with one request."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping

from dynamo_core.contracts import WorkerView
from dynamo_core.errors import CannotConnect, Disconnected, DynamoError, EngineError, EngineShutdown, Overloaded

__all__ = ["CircuitBreaker"]

_log = logging.getLogger(__name__)

_LONGEST = 12
"""A pause grows to this many times the first."""
_WORKERS_FAULT = (CannotConnect, Disconnected, EngineShutdown, EngineError, Overloaded)


class _Circuit:
    """A worker that failed last. Closed until ``pause`` is set; then open until ``until``, half-open after."""

    __slots__ = ("failures", "pause", "tried", "until")

    def __init__(self) -> None:
        self.failures = 0
        self.pause = 0.0
        self.until = 0.0
        self.tried = False
        """The one request of the half-open state is on its way."""


class CircuitBreaker:
    """Of one model. Costs one test a request while every worker is well.

    A failure is a leg that ended through the worker's fault before it gave anything. When every worker is left out, all are
    offered: a doubtful worker is better than none.
    """

    def __init__(self, failures: int, seconds: float, changed: Callable[[], None]) -> None:
        self.trips = 0
        self._limit = failures
        self._seconds = seconds
        self._changed = changed
        self._loop = asyncio.get_running_loop()
        self._circuits: dict[int, _Circuit] = {}
        self._timers: dict[int, asyncio.TimerHandle] = {}

    def left_out(self) -> frozenset[int]:
        return frozenset(worker for worker, circuit in self._circuits.items() if not self._passes(circuit))

    def offered(self, workers: Mapping[int, WorkerView]) -> Mapping[int, WorkerView]:
        if not self._circuits:
            return workers
        out = self.left_out()
        return {worker: view for worker, view in workers.items() if worker not in out} or workers

    def placed(self, worker: int) -> None:
        """A request is on its way to it."""
        circuit = self._circuits.get(worker)
        if circuit is not None and circuit.pause and self._passes(circuit):
            circuit.tried = True

    def answered(self, worker: int) -> None:
        circuit = self._circuits.pop(worker, None)
        if circuit is not None and circuit.pause:
            self._stop_timer(worker)
            _log.info("worker %x answers again and is back", worker)
            self._changed()

    def failed(self, worker: int, error: DynamoError) -> None:
        """A leg ended before it gave anything; an error that is not the worker's fault changes nothing."""
        if not self._limit or not isinstance(error, _WORKERS_FAULT):
            return
        circuit = self._circuits.setdefault(worker, _Circuit())
        circuit.failures += 1
        if circuit.pause:
            if not circuit.tried:
                return  # sent there before it opened, or because nobody else is left
            circuit.pause = min(circuit.pause * 2, self._seconds * _LONGEST)
        elif circuit.failures >= self._limit:
            circuit.pause = self._seconds
        else:
            return
        circuit.tried = False
        circuit.until = self._loop.time() + circuit.pause
        self.trips += 1
        self._stop_timer(worker)
        self._timers[worker] = self._loop.call_later(circuit.pause, self._changed)
        _log.warning(
            "worker %x is left out for %g s after %d failures in a row: %s",
            worker, circuit.pause, circuit.failures, error.message,
        )  # fmt: skip

    def ended(self, worker: int) -> None:
        """A leg is over, one way or the other: where it proved nothing, another may try."""
        circuit = self._circuits.get(worker)
        if circuit is not None:
            circuit.tried = False

    def forget(self, worker: int) -> None:
        self._circuits.pop(worker, None)
        self._stop_timer(worker)

    def close(self) -> None:
        for worker in tuple(self._timers):
            self._stop_timer(worker)

    def _passes(self, circuit: _Circuit) -> bool:
        return not circuit.pause or (not circuit.tried and self._loop.time() >= circuit.until)

    def _stop_timer(self, worker: int) -> None:
        timer = self._timers.pop(worker, None)
        if timer is not None:
            timer.cancel()
