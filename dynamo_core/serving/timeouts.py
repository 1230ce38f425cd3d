"""How long a generation may take: in all, to its first token, between two tokens."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from time import monotonic

import msgspec

from dynamo_core.errors import DeadlineExceeded, DynamoError
from dynamo_core.serving.record import RequestRecord

__all__ = ["StreamTimer", "Timeouts"]


class Timeouts(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds; 0 sets no limit."""

    total: float = 0.0
    first_token: float = 0.0
    token: float = 0.0

    def deadline(self, given: float | None) -> float | None:
        """The nearer one of the request's own deadline and ours, in seconds since the epoch."""
        if not self.total:
            return given
        ours = time.time() + self.total
        return ours if given is None else min(ours, given)


class StreamTimer:
    """One timer a generation, which reads the record when it is due: tokens cost nothing.

    Time during which the client did not read does not count between tokens.
    """

    def __init__(
        self, timeouts: Timeouts, deadline: float | None, record: RequestRecord, expired: Callable[[DynamoError], None]
    ) -> None:
        self._timeouts = timeouts
        self._deadline = None if deadline is None else monotonic() + deadline - time.time()
        self._record = record
        self._expired = expired
        self._begun = monotonic()
        self._resumed = 0.0
        self._paused = False
        self._timer: asyncio.TimerHandle | None = None
        self._arm()

    def pause(self) -> None:
        self._paused = True

    def resume(self) -> None:
        self._paused = False
        self._resumed = monotonic()

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._expired = _ignore

    def _arm(self) -> None:
        due = [moment for moment in (self._deadline, self._quiet_until()) if moment is not None]
        if due:
            delay = max(0.0, min(due) - monotonic())
            self._timer = asyncio.get_running_loop().call_later(delay, self._check)

    def _quiet_until(self) -> float | None:
        timeouts, record = self._timeouts, self._record
        if record.first_token is None:
            return self._begun + timeouts.first_token if timeouts.first_token else self._poll()
        if not timeouts.token:
            return None
        if self._paused:
            return monotonic() + timeouts.token
        return max(record.last_token or record.first_token, self._resumed) + timeouts.token

    def _poll(self) -> float | None:
        """With a limit between tokens and none to the first: when to look whether it has come."""
        return monotonic() + self._timeouts.token if self._timeouts.token else None

    def _check(self) -> None:
        self._timer = None
        now = monotonic()
        if self._deadline is not None and now >= self._deadline:
            self._expired(DeadlineExceeded("The request's deadline passed before it was complete."))
            return
        quiet = self._quiet_until()
        if quiet is not None and now >= quiet:
            first = self._record.first_token is None
            seconds = self._timeouts.first_token if first else self._timeouts.token
            what = "The first token did not come" if first else "The next token did not come"
            code = "first_token_timeout" if first else "token_timeout"
            self._expired(DeadlineExceeded(f"{what} within {seconds:g} s.", code=code))
            return
        self._arm()


def _ignore(_: DynamoError) -> None:
    """What a timer calls that is closed: it holds nothing of its generation, which holds the timer."""
