"""A shorter way for the tokens of an engine step, beside vLLM's output processor."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from operator import attrgetter, is_
from typing import Any

import msgspec

from dynamo_vllm.stream import Stream

__all__ = ["StepOutputs", "shorten"]

_TOKENS = ("request_id", "new_token_ids")
_COUNT = "_update_stats_from_output"


class StepOutputs:
    """Stands for ``process_outputs`` of vLLM's ``OutputProcessor``: called once an engine step with the outputs of all sequences.

    Nearly every output of a running sequence is a token and nothing else. vLLM makes two objects and calls a dozen methods to
    wrap it up; here its own methods keep its books (statistics, the sequence's tokens), and the token goes to the stream. Any
    output that says more, or belongs to a sequence that is not one of our streams, takes vLLM's way.
    """

    def __init__(self, processor: Any, output_type: type[msgspec.Struct]) -> None:
        self._whole: Callable[..., Any] = processor.process_outputs
        self._states: dict[str, Any] = processor.request_states
        self._count: Callable[..., None] = getattr(processor, _COUNT)
        others = [field for field in msgspec.structs.fields(output_type) if field.name not in _TOKENS]
        self._others = attrgetter(*(field.name for field in others))
        self._nothing = tuple(field.default for field in others)

    def __call__(
        self, outputs: Sequence[Any], engine_core_timestamp: float | None = None, iteration_stats: Any = None, **more: Any
    ) -> Any:
        if any(value is not None for value in more.values()):
            return self._whole(outputs, engine_core_timestamp, iteration_stats, **more)
        states, others, nothing = self._states, self._others, self._nothing
        rest = []
        for output in outputs:
            state = states.get(output.request_id)
            # Identity and not equality: an array that equals nothing has no truth value.
            if (
                state is None
                or type(stream := state.queue) is not Stream
                or not stream.plain
                or not all(map(is_, others(output), nothing))
            ):
                rest.append(output)
                continue
            if iteration_stats is not None:
                self._count(state, output, engine_core_timestamp, iteration_stats)
            tokens = output.new_token_ids
            state.detokenizer.update(tokens, False)
            stream.tokens(tokens)
        return self._whole(rest, engine_core_timestamp, iteration_stats, **more)


def shorten(llm: Any) -> bool:
    """Put :class:`StepOutputs` into an ``AsyncLLM`` whose output handler does not run yet.

    False, and nothing is changed, where this vLLM is not built as the tried ones are: everything then takes vLLM's own way.
    """
    from vllm.v1.engine import EngineCoreOutput

    try:
        processor = llm.output_processor
        known = list(inspect.signature(processor.process_outputs).parameters)[:3]
        counted = list(inspect.signature(getattr(processor, _COUNT)).parameters)
        fields = msgspec.structs.fields(EngineCoreOutput)
        fits = (
            llm.output_handler is None
            and known == ["engine_core_outputs", "engine_core_timestamp", "iteration_stats"]
            and counted == ["req_state", "engine_core_output", "engine_core_timestamp", "iteration_stats"]
            and isinstance(processor.request_states, dict)
            and processor.stream_interval == 1  # with more, vLLM holds tokens back
            and tuple(field.name for field in fields if field.required) == _TOKENS
        )
    except (AttributeError, TypeError, ValueError):
        return False
    if fits:
        processor.process_outputs = StepOutputs(processor, EngineCoreOutput)
    return fits
