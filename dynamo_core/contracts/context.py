"""The context that travels with one request through every process."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["Context", "TraceHeaders"]


class TraceHeaders(dict[str, str]):
    """``traceparent``, ``tracestate``, ``x-request-id`` and ``request-id`` as received. Calling it gives a copy, as code written
    for Dynamo does."""

    def __call__(self) -> dict[str, str]:
        return dict(self)


class Context:
    """Identity, deadline and cancellation of one request.

    *stop* asks for a graceful end (finish the current step, keep what was produced), *kill* for an abrupt one. A handler that
    passes its context to a downstream client links the two: cancelling here cancels there. All methods belong to the
    event loop's thread; none blocks.
    """

    __slots__ = ("_callbacks", "_id", "_killed", "_stopped", "_waiters", "deadline", "metadata", "trace_headers")

    def __init__(
        self,
        id: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        *,
        deadline: float | None = None,
        trace_headers: Mapping[str, str] | None = None,
    ) -> None:
        self._id = id or uuid.uuid4().hex
        self.metadata: dict[str, Any] = dict(metadata or {})
        self.deadline = deadline
        """Seconds since the epoch, or ``None``."""
        self.trace_headers = TraceHeaders(trace_headers or {})
        self._stopped = False
        self._killed = False
        self._callbacks: list[Callable[[bool], None]] | None = None
        self._waiters: list[asyncio.Future[bool]] | None = None

    def id(self) -> str:
        return self._id

    @property
    def trace_id(self) -> str | None:
        """Of the W3C ``traceparent``, 32 hexadecimal digits; ``None`` when the request came without one."""
        return self._traceparent(1, 32)

    @property
    def parent_span_id(self) -> str | None:
        """The caller's span, 16 hexadecimal digits."""
        return self._traceparent(2, 16)

    def is_stopped(self) -> bool:
        """True after either :meth:`stop_generating` or :meth:`kill`."""
        return self._stopped

    def is_killed(self) -> bool:
        return self._killed

    def stop_generating(self) -> None:
        """Ask for a graceful end. Calling it again changes nothing."""
        if not self._stopped:
            self._stopped = True
            self._notify(killed=False)

    def kill(self) -> None:
        """End at once. Also counts as stopped; a kill may follow a stop."""
        if not self._killed:
            self._stopped = self._killed = True
            self._notify(killed=True)

    def async_killed_or_stopped(self) -> asyncio.Future[bool]:
        """A future that is done (True) once the request is stopped or killed."""
        future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        if self._stopped:
            future.set_result(True)
        else:
            self._waiters = self._waiters or []
            self._waiters.append(future)
        return future

    def on_cancel(self, callback: Callable[[bool], None]) -> Callable[[], None]:
        """Call ``callback(killed)`` on stop and again on kill (at once, if already cancelled). Returns what unregisters it."""
        if self._stopped:
            callback(self._killed)
            if self._killed:
                return lambda: None
        if self._callbacks is None:
            self._callbacks = []
        callbacks = self._callbacks
        callbacks.append(callback)

        def unregister() -> None:
            if callback in callbacks:
                callbacks.remove(callback)

        return unregister

    def child(self, id: str | None = None) -> Context:
        """A context of its own id that is cancelled with this one (not the other way round)."""
        child = Context(id, self.metadata, deadline=self.deadline, trace_headers=self.trace_headers)
        self.on_cancel(lambda killed: child.kill() if killed else child.stop_generating())
        return child

    def detached(self, id: str | None = None) -> Context:
        """A context with the same metadata that is not cancelled with this one."""
        return Context(id, self.metadata, trace_headers=self.trace_headers)

    def _traceparent(self, place: int, digits: int) -> str | None:
        parts = self.trace_headers.get("traceparent", "").split("-")
        return parts[place] if len(parts) >= 4 and len(parts[place]) == digits else None

    def _notify(self, *, killed: bool) -> None:
        for callback in tuple(self._callbacks or ()):
            callback(killed)
        waiters, self._waiters = self._waiters, None
        for waiter in waiters or ():
            if not waiter.done():
                waiter.set_result(True)
