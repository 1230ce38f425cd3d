"""Server-sent events: the streamed form of a generation.

The hot path is :meth:`EventStream.text` and :meth:`EventStream.flush`, called from within the request plane's frame callback.
Nothing but the text is encoded there; what surrounds it was rendered when the stream began.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import msgspec

from dynamo_core.errors import DynamoError
from dynamo_core.http.errors import envelope
from dynamo_core.http.writer import Writer
from dynamo_core.serving.output import ChoiceOutput, Usage
from dynamo_core.serving.record import RequestRecord

__all__ = ["ChunkFormat", "EventStream", "GapObserver", "cut_short", "event"]

GapObserver = Callable[[float, int], None]
"""``(seconds, count)``: as many tokens came this long after the one before each."""

_DONE = b"data: [DONE]\n\n"
_HEADERS = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
)

_encode = msgspec.json.Encoder().encode


def event(data: bytes) -> bytes:
    return b"data: " + data + b"\n\n"


def cut_short(error: DynamoError) -> bytes:
    """The end of a stream that an error ends."""
    return event(envelope(error)) + _DONE


class ChunkFormat(Protocol):
    """The chunks of one API, of one stream. All methods return complete events."""

    prefixes: list[bytes]
    """Of each choice: an event up to the text, which follows as a JSON string."""
    suffix: bytes
    """The event from there on."""
    plain: bool
    """False when every chunk carries more than its text, so that none goes by prefix and suffix."""

    def opening(self, index: int) -> bytes:
        """What comes before the first news of a choice; may be empty."""
        ...

    def chunks(self, index: int, output: ChoiceOutput) -> bytes:
        """One event or, with a finish reason, up to two."""
        ...

    def closing(self, usage: Usage) -> bytes:
        """What comes after the last choice ended; may be empty."""
        ...


class EventStream:
    """An :class:`~dynamo_core.serving.output.OutputSink` that writes events.

    The response starts with the first event, so that what fails before it still gets its proper status; what fails after it
    becomes an error event.
    """

    __slots__ = (
        "_elapsed_from", "_format", "_gaps", "_live", "_on_end", "_pending", "_plain", "_prefixes", "_record", "_suffix",
        "_tokens", "_unopened", "_writer",
    )  # fmt: skip

    def __init__(
        self,
        format: ChunkFormat,
        writer: Writer,
        record: RequestRecord,
        on_end: Callable[[DynamoError | None], None],
        gaps: GapObserver | None = None,
    ) -> None:
        self._format = format
        self._prefixes = format.prefixes
        self._suffix = format.suffix
        self._plain = format.plain
        self._writer = writer
        self._record = record
        self._on_end = on_end
        self._gaps = gaps
        self._pending: list[bytes] = []
        self._unopened = set(range(len(format.prefixes)))
        self._live = len(format.prefixes)
        self._tokens = 0
        self._elapsed_from: float | None = None

    def text(self, index: int, text: str) -> None:
        if index in self._unopened:
            self._open(index)
        if self._plain:
            self._tokens += 1
            self._pending += (self._prefixes[index], _encode(text), self._suffix)
        else:
            self.output(index, ChoiceOutput(text))

    def output(self, index: int, output: ChoiceOutput) -> None:
        if index in self._unopened:
            self._open(index)
        if output.text or output.token_ids:
            self._tokens += len(output.token_ids) or 1
        self._pending.append(self._format.chunks(index, output))
        if output.finish_reason is not None:
            self._live -= 1

    def flush(self) -> None:
        if not self._pending:
            return
        body = b"".join(self._pending)
        self._pending.clear()
        writer = self._writer
        if not writer.started:
            writer.start(_HEADERS)
        writer.write(body)
        if self._gaps is not None:
            self._measure(self._gaps)

    def completed(self, usage: Usage) -> None:
        self._end(self._format.closing(usage))
        self._record.close(200, "completed")
        self._on_end(None)

    def failed(self, error: DynamoError) -> None:
        if not self._writer.started and not self._pending:
            self._on_end(error)
            return
        self._end(event(envelope(error)))
        self._record.close(error.status, "failed", error.code)
        self._on_end(None)

    def _open(self, index: int) -> None:
        self._unopened.discard(index)
        self._pending.append(self._format.opening(index))

    def _end(self, last: bytes) -> None:
        self._pending += (last, _DONE)
        if not self._writer.started:
            self._writer.start(_HEADERS)
        self._writer.end(b"".join(self._pending))
        self._pending.clear()

    def _measure(self, gaps: GapObserver) -> None:
        now, before = self._record.last_token, self._elapsed_from
        if now is None or not self._tokens:
            return
        count, self._tokens, self._elapsed_from = self._tokens, 0, now
        if before is not None:
            live = self._live or 1
            gaps((now - before) * live / count if count > live else now - before, count)
