"""Following a numbered series of batches of which some were missed: those before one came, and those that got lost.

The publisher keeps the state that its batches add up to, and serves it as batches that bear the number of the last one in it. A
follower fetches that, then goes on with the batches after it; a hole in the numbers makes it fetch again. Where the state cannot
be had it goes on with what comes, and asks again from time to time.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from typing import Any, Generic, NamedTuple, TypeVar

from dynamo_core.contracts import ClientStream, StreamReceiver
from dynamo_core.errors import DynamoError, EngineError

__all__ = ["Follower", "Numbered", "Source"]

_log = logging.getLogger(__name__)

Batch = TypeVar("Batch")

_HELD = 16_384
"""Batches that wait for a state; beyond that the state is fetched again after all."""
_SECONDS = 10.0
"""A state that takes longer is given up."""
_PAUSE_SECONDS = 0.2
"""Between two fetches: who loses batches because it is overloaded does not get better by asking."""
_RETRY_SECONDS = 1.0
_MOST_RETRY_SECONDS = 60.0
"""After a fetch that failed, and twice as long after each further one."""


class Numbered(NamedTuple):
    """``number`` counts the batches of one ``series`` from 0."""

    series: int
    number: int


class Source(Generic[Batch]):
    """Where a follower's batches come from: what they are called, how they are read, and who has their state."""

    def __init__(
        self,
        name: str,
        *,
        number: Callable[[Batch], Numbered],
        decode: Callable[[Any], Batch | None],
        fetch: Callable[[StreamReceiver], ClientStream] | None,
    ) -> None:
        self.name = name
        self.number = number
        self.decode = decode
        self.fetch = fetch
        """Asks for the state. ``None``: nobody has it, and what was missed is lost."""


class Follower(Generic[Batch]):
    """Calls ``apply`` with every batch once and in order, those of a state among them, and ``lost`` with a series of which some
    are missing for good. Everything happens on the event loop."""

    def __init__(self, source: Source[Batch], apply: Callable[[Batch], None], lost: Callable[[int], None]) -> None:
        self._source = source
        self._apply = apply
        self._lost = lost
        self._next: dict[int, int] = {}
        self._whole = False
        """A state was had: every series began with number 0."""
        self._fetch: _Fetch[Batch] | None = None
        self._held: deque[Batch] = deque(maxlen=_HELD)
        self._not_before = 0.0
        self._missed = True
        """Something is, that a state would mend; until it is there batches are held back."""
        self._retry: asyncio.TimerHandle | None = None
        self._retry_seconds = _RETRY_SECONDS

    def begin(self) -> None:
        """Fetch the state, if there is anybody to ask."""
        if self._source.fetch is not None and self._fetch is None:
            self._no_retry()
            fetch = self._fetch = _Fetch(self, self._source)
            fetch.begin(self._source.fetch, self._not_before)

    def close(self) -> None:
        if self._fetch is not None:
            self._fetch.close()
            self._fetch = None
        self._no_retry()
        self._held.clear()

    def receive(self, batch: Batch) -> None:
        """The publisher's next batch, or so it seems."""
        if self._fetch is not None:
            self._held.append(batch)
            if self._missed:
                return
        series, number = self._source.number(batch)
        expected = self._next.get(series, 0 if self._whole else number)
        if number < expected:
            return
        if number > expected:
            if self._source.fetch is not None:
                _log.info("%s: %d batches are missing; fetching the state", self._source.name, number - expected)
                self._missed = True
                if self._fetch is None:
                    self._held.append(batch)
                    self.begin()
                return
            self._lost(series)
        self._next[series] = number + 1
        self._apply(batch)

    def dropped(self) -> None:
        """The plane itself says that it lost something."""
        if self._source.fetch is None:
            for series in self._next or (0,):
                self._lost(series)
            self._next.clear()
        else:
            self._missed = True
            self.begin()

    def at_least(self, series: int, following: int) -> None:
        """The publisher says which number its next batch will have: the last ones before it may have got lost."""
        if self._whole and self._fetch is None and self._next.get(series, 0) < following:
            self._missed = True
            self.begin()

    # --- called by the fetch -------------------------------------------------------------------------------------------------

    def state(self, batch: Batch) -> None:
        self._missed = True  # the state takes the place of all that was known, and is not whole yet
        series, number = self._source.number(batch)
        self._next[series] = number + 1
        self._apply(batch)

    def fetched(self, error: DynamoError | None) -> None:
        self._fetch = None
        self._not_before = asyncio.get_running_loop().time() + _PAUSE_SECONDS
        held, self._held = self._held, deque(maxlen=_HELD)
        missed, self._missed = self._missed, False
        if error is None:
            self._whole = True
            self._retry_seconds = _RETRY_SECONDS
        else:
            if missed:
                _log.warning("%s: the state cannot be had (%s); going on without", self._source.name, error.message)
                for series in self._next or ((0,) if held else ()):
                    self._lost(series)
                self._next.clear()
            else:
                held.clear()  # another attempt: they were applied as they came
            self._whole = False
            self._retry = asyncio.get_running_loop().call_later(self._retry_seconds, self.begin)
            self._retry_seconds = min(2 * self._retry_seconds, _MOST_RETRY_SECONDS)
        for batch in held:
            self.receive(batch)

    def _no_retry(self) -> None:
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None


class _Fetch(Generic[Batch]):
    """One attempt to get the state: the receiver of its stream."""

    def __init__(self, follower: Follower[Batch], source: Source[Batch]) -> None:
        self._follower: Follower[Batch] | None = follower
        self._source = source
        self._stream: ClientStream | None = None
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, fetch: Callable[[StreamReceiver], ClientStream], at: float) -> None:
        if self._loop.time() < at:
            self._timer = self._loop.call_at(at, self._ask, fetch)
        else:
            self._ask(fetch)

    def _ask(self, fetch: Callable[[StreamReceiver], ClientStream]) -> None:
        self._timer = self._loop.call_later(_SECONDS, self._expired)
        try:
            self._stream = fetch(self)
        except DynamoError as error:  # it left in this very moment
            self._end(error)

    def close(self) -> None:
        """Deliver nothing more."""
        self._follower = None
        if self._timer is not None:
            self._timer.cancel()
        if self._stream is not None:
            self._stream.cancel(kill=True)

    def on_items(self, items: list[Any]) -> None:
        for item in items:
            batch = self._source.decode(item)
            if self._follower is not None and batch is not None:
                self._follower.state(batch)

    def on_end(self) -> None:
        self._end(None)

    def on_error(self, error: DynamoError) -> None:
        self._end(error)

    def _expired(self) -> None:
        if self._stream is not None:
            self._stream.cancel(kill=True)
        self._end(EngineError(f"no answer within {_SECONDS:g} s"))

    def _end(self, error: DynamoError | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        follower, self._follower = self._follower, None
        if follower is not None:
            follower.fetched(error)
