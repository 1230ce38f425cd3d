"""Parts of a request's work that are timed and named, in W3C's terms of trace and span."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self

__all__ = ["Span"]

_log = logging.getLogger(__name__)


class Span:
    """Begun by :meth:`Context.start_span <dynamo_core.contracts.Context.start_span>`, ended by :meth:`end` or with its block.

    What it was is told to the log of this module, at level debug. While it runs, requests to others name it as their parent.
    """

    __slots__ = ("_began", "_ended", "attributes", "events", "name", "parent_span_id", "span_id", "status", "trace_id")

    def __init__(
        self,
        name: str,
        trace_id: str,
        parent_span_id: str | None,
        attributes: Mapping[str, Any] | None,
        ended: Callable[[Span], None],
    ) -> None:
        self.name = name
        self.trace_id = trace_id
        self.span_id = secrets.token_hex(8)
        self.parent_span_id = parent_span_id
        self.attributes: dict[str, Any] = dict(attributes or {})
        self.events: list[tuple[float, str, dict[str, Any]]] = []
        """Seconds after the span's begin, name and attributes."""
        self.status = "unset"
        self._began = time.perf_counter()
        self._ended: Callable[[Span], None] | None = ended

    def set_attribute(self, key: str, value: Any) -> None:
        self.attributes[key] = value

    def add_event(self, name: str, attrs: Mapping[str, Any] | None = None) -> None:
        self.events.append((time.perf_counter() - self._began, name, dict(attrs or {})))

    def set_status(self, status: str, description: str | None = None) -> None:
        """``ok`` or ``error``, and why."""
        self.status = status if description is None else f"{status}: {description}"

    def end(self) -> None:
        """Ending it again changes nothing."""
        ended, self._ended = self._ended, None
        if ended is None:
            return
        ended(self)
        if _log.isEnabledFor(logging.DEBUG):
            milliseconds = (time.perf_counter() - self._began) * 1000
            events = "".join(f" [{seconds * 1000:.1f} ms {name}{more or ''}]" for seconds, name, more in self.events)
            _log.debug(
                "span %s took %.1f ms, status %s, trace %s, span %s, parent %s %s%s",
                self.name, milliseconds, self.status, self.trace_id, self.span_id, self.parent_span_id, self.attributes, events,
            )  # fmt: skip

    def close(self) -> None:
        """:meth:`end`, in Dynamo's word."""
        self.end()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is not None and isinstance(error, Exception):
            self.set_status("error", f"{type(error).__name__}: {error}")
        self.end()
