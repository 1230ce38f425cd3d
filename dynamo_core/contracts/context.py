"""The context that travels with one request through every process."""

from __future__ import annotations

import asyncio
import secrets
import uuid
from collections.abc import Callable, Mapping
from typing import Any

from dynamo_core.contracts.span import Span

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

    __slots__ = ("_callbacks", "_id", "_killed", "_spans", "_stopped", "_waiters", "deadline", "metadata", "trace_headers")

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
        self._spans: list[Span] | None = None
        """Those that run, the innermost last."""

    def id(self) -> str:
        return self._id

    @property
    def trace_id(self) -> str | None:
        """Of the W3C ``traceparent``, 32 hexadecimal digits; ``None`` when the request came without one and no span was begun."""
        return self._traceparent(1, 32)

    @property
    def parent_span_id(self) -> str | None:
        """The caller's span, 16 hexadecimal digits."""
        return self._spans[0].parent_span_id if self._spans else self._traceparent(2, 16)

    @property
    def span_id(self) -> str | None:
        """Of the innermost span that runs here, 16 hexadecimal digits; ``None`` without one."""
        return self._spans[-1].span_id if self._spans else None

    def start_span(self, name: str, attrs: Mapping[str, Any] | None = None) -> Span:
        """A part of the work, within the one that runs; ``with context.start_span("look up"):`` ends it. Requests that get this
        context, or its ``trace_headers``, meanwhile belong to it. Without a trace it begins one."""
        if self._spans is None:
            self._spans = []
        before = self.trace_headers.get("traceparent")
        trace_id = self.trace_id or secrets.token_hex(16)
        span = Span(name, trace_id, self.span_id or self._traceparent(2, 16), attrs, lambda span: self._ended(span, before))
        self._spans.append(span)
        flags = before.rpartition("-")[2] if before else "01"
        self.trace_headers["traceparent"] = f"00-{trace_id}-{span.span_id}-{flags}"
        return span

    def current_span(self) -> Span:
        """The innermost span that runs; the first call begins one for the whole request."""
        return self._spans[-1] if self._spans else self.start_span("request", {"request_id": self._id})

    def end_spans(self) -> None:
        """The request is over. Called by who serves it."""
        while self._spans:
            self._spans[-1].end()

    def notify_first_token(self) -> None:
        """Accepted for code written for Dynamo, and nothing to do: a stream's first item is the sign."""

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

    def _ended(self, span: Span, before: str | None) -> None:
        while self._spans and span in self._spans and self._spans[-1] is not span:
            self._spans[-1].end()  # begun within it
        if self._spans and self._spans[-1] is span:
            self._spans.pop()
        if before is None:
            self.trace_headers.pop("traceparent", None)
        else:
            self.trace_headers["traceparent"] = before

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
