"""Output filters of plugins between a generation and its sink: only generations that have one pass through here."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from dynamo_core.contracts import OutputFilter, OutputStream
from dynamo_core.errors import DynamoError
from dynamo_core.serving.output import ChoiceOutput, GenerationRequest, OutputSink, Usage
from dynamo_core.serving.record import RequestRecord

__all__ = ["FilteredSink", "filtered"]


def filtered(
    sink: OutputSink,
    request: GenerationRequest,
    record: RequestRecord,
    model: str,
    open_filter: Callable[[OutputStream], OutputFilter | None],
) -> OutputSink:
    """``sink`` itself, if nobody wants to filter a choice of this request. Raises what a plugin refuses the request with."""
    filters: dict[int, OutputFilter] = {}
    for index in range(len(request.prompts) * request.n):
        stream = OutputStream(
            request_id=request.id,
            model=model,
            endpoint=request.endpoint,
            headers=request.headers,
            principal=record.principal,
            index=index,
        )
        opened = open_filter(stream)
        if opened is not None:
            filters[index] = opened
    return FilteredSink(sink, filters) if filters else sink


class FilteredSink:
    """An :class:`~dynamo_core.serving.output.OutputSink` whose choices in ``filters`` tell what these let through.

    ``text`` and ``output`` raise what a filter raises: their caller fails the generation with it.
    """

    __slots__ = ("_filters", "_sink")

    def __init__(self, sink: OutputSink, filters: Mapping[int, OutputFilter]) -> None:
        self._sink = sink
        self._filters = filters

    def text(self, index: int, text: str) -> None:
        found = self._filters.get(index)
        if found is not None:
            text = found.push(text)
            if not text:
                return
        self._sink.text(index, text)

    def output(self, index: int, output: ChoiceOutput) -> None:
        found = self._filters.get(index)
        if found is None:
            self._sink.output(index, output)
            return
        reason = output.finish_reason
        if reason == "cancelled":  # nobody reads on, and callers of this path cannot fail the generation
            text = ""
        else:
            text = found.push(output.text) if output.text else ""
            if reason is not None:
                text += found.finish()
        if text or reason is not None:
            self._sink.output(index, ChoiceOutput(text, finish_reason=reason, stop_reason=output.stop_reason))

    def flush(self) -> None:
        self._sink.flush()

    def completed(self, usage: Usage) -> None:
        self._sink.completed(usage)

    def failed(self, error: DynamoError) -> None:
        self._sink.failed(error)
