"""The unary form of a generation: collect everything, encode once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import msgspec

from dynamo_core.errors import DynamoError
from dynamo_core.http.sse import GapObserver
from dynamo_core.http.writer import Writer
from dynamo_core.serving.output import ChoiceOutput, Logprob, Usage
from dynamo_core.serving.record import RequestRecord

__all__ = ["BodyFormat", "Collected", "Collector"]

_encode = msgspec.json.Encoder().encode


class Collected:
    """All of one choice."""

    __slots__ = ("finish_reason", "logprobs", "stop_reason", "texts")

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.logprobs: list[Logprob] = []
        self.finish_reason: str | None = None
        self.stop_reason: int | str | None = None

    @property
    def text(self) -> str:
        return "".join(self.texts)


class BodyFormat(Protocol):
    """Makes the body of one API's unary response: something that msgspec encodes."""

    def __call__(self, choices: Sequence[Collected], usage: Usage) -> Any: ...


class Collector:
    """An :class:`~dynamo_core.serving.output.OutputSink` that answers once."""

    __slots__ = ("_body", "_choices", "_gaps", "_last", "_on_end", "_record", "_tokens", "_writer")

    def __init__(
        self,
        body: BodyFormat,
        choices: int,
        writer: Writer,
        record: RequestRecord,
        on_end: Callable[[DynamoError | None], None],
        gaps: GapObserver | None = None,
    ) -> None:
        self._body = body
        self._choices = [Collected() for _ in range(choices)]
        self._writer = writer
        self._record = record
        self._on_end = on_end
        self._gaps = gaps
        self._tokens = 0
        self._last: float | None = None

    def text(self, index: int, text: str) -> None:
        self._tokens += 1
        self._choices[index].texts.append(text)

    def output(self, index: int, output: ChoiceOutput) -> None:
        choice = self._choices[index]
        if output.text:
            self._tokens += 1
            choice.texts.append(output.text)
        if output.logprobs:
            choice.logprobs += output.logprobs
        if output.finish_reason is not None:
            choice.finish_reason = output.finish_reason
            choice.stop_reason = output.stop_reason

    def flush(self) -> None:
        now, count = self._record.last_token, self._tokens
        if self._gaps is None or now is None or not count:
            return
        before, self._last, self._tokens = self._last, now, 0
        if before is not None:
            live = len(self._choices)
            self._gaps((now - before) * live / count if count > live else now - before, count)

    def completed(self, usage: Usage) -> None:
        body = _encode(self._body(self._choices, usage))
        length = str(len(body)).encode("ascii")
        self._writer.start(((b"content-type", b"application/json"), (b"content-length", length)))
        self._writer.end(body)
        self._record.close(200, "completed")
        self._on_end(None)

    def failed(self, error: DynamoError) -> None:
        self._on_end(error)
