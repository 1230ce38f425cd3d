"""The shorter way of plain tokens: the same for streams and for vLLM's books as its own."""

from __future__ import annotations

import functools
import types
from collections.abc import Sequence
from typing import Any

import pytest

from dynamo_core.contracts import EngineChunk, EngineRequest
from dynamo_vllm.steps import StepOutputs, shorten
from dynamo_vllm.stream import Stream

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.timeout(120),
    pytest.mark.filterwarnings("ignore"),  # vLLM, torch and what they import warn of one another
]

PROMPT = list(range(40))


class Sink:
    def __init__(self) -> None:
        self.said: list[Any] = []

    def token(self, token_id: int) -> None:
        self.said.append(token_id)

    def chunk(self, chunk: EngineChunk) -> None:
        self.said.append(chunk)


class Owner:
    def __init__(self) -> None:
        self.over: list[Stream] = []

    def ended(self, stream: Stream) -> None:
        self.over.append(stream)

    def first_token(self, stream: Stream) -> None: ...

    def died(self, error: BaseException) -> bool:
        raise AssertionError(error)


class Played:
    """vLLM's own output processor, with sequences of ours and no engine."""

    def __init__(self, *, short: bool, sequences: int = 3) -> None:
        from vllm.v1.engine.output_processor import OutputProcessor

        self.processor: Any = OutputProcessor(None, log_stats=True)
        self.sinks = [Sink() for _ in range(sequences)]
        self.owner = Owner()
        self.statistics: list[Any] = []
        self.long: list[str] = []
        for number, sink in enumerate(self.sinks):
            self._admit(f"r{number}", sink)
        if short:
            whole = self.processor.process_outputs

            @functools.wraps(whole)
            def heard(outputs: Any, *more: Any, **named: Any) -> Any:
                self.long.extend(output.request_id for output in outputs)
                return whole(outputs, *more, **named)

            self.processor.process_outputs = heard
            assert shorten(types.SimpleNamespace(output_processor=self.processor, output_handler=None))
            assert isinstance(self.processor.process_outputs, StepOutputs)

    def _admit(self, name: str, sink: Sink) -> None:
        from vllm.sampling_params import RequestOutputKind, SamplingParams
        from vllm.v1.engine import EngineCoreRequest

        logprobs = 1 if name == "r2" else None
        params = SamplingParams(
            max_tokens=50, stop_token_ids=[7], detokenize=False, output_kind=RequestOutputKind.DELTA, logprobs=logprobs
        )
        request = EngineCoreRequest(
            request_id=name, external_req_id=name, prompt_token_ids=PROMPT, mm_features=None, sampling_params=params,
            pooling_params=None, arrival_time=0.0, lora_request=None, cache_salt=None, data_parallel_rank=None,
        )  # fmt: skip
        stream = Stream(EngineRequest(id=name, token_ids=PROMPT, logprobs=logprobs), sink, self.owner)
        self.processor.add_request(request, None, None, 0, stream)

    def step(self, at: float, *outputs: Any, **more: Any) -> None:
        from vllm.v1.metrics.stats import IterationStats

        statistics: Any = IterationStats()  # type: ignore[no-untyped-call]
        statistics.iteration_timestamp = at
        self.processor.process_outputs(list(outputs), at, statistics, **more)
        self.statistics.append(statistics)


def output(name: str, tokens: Sequence[int], **more: Any) -> Any:
    from vllm.v1.engine import EngineCoreOutput

    return EngineCoreOutput(request_id=name, new_token_ids=list(tokens), **more)


def logprobs(token: int) -> Any:
    import numpy as np
    from vllm.v1.outputs import LogprobsLists

    return LogprobsLists(np.array([[token, token]]), np.array([[-0.5, -0.5]]), np.array([1]))


def play(played: Played) -> None:
    from vllm.v1.engine import FinishReason

    played.step(1.0, output("r0", [11]), output("r1", [12]), output("r2", [13], new_logprobs=logprobs(13)))
    played.step(2.0, output("r0", [21]), output("r1", [22]), output("gone", [1]))
    played.step(3.0, output("r0", [31, 32]), output("r1", []), output("r2", [33], new_logprobs=logprobs(33)))
    played.step(4.5, output("r0", [41]), output("r1", [7], finish_reason=FinishReason.STOP, stop_reason=7))
    played.step(5.0, output("r0", [51], finish_reason=FinishReason.LENGTH), output("r1", [52]))


def test_streams_hear_the_same_and_vllm_counts_the_same() -> None:
    plain, short = Played(short=False), Played(short=True)
    play(plain)
    play(short)
    assert [sink.said for sink in short.sinks] == [sink.said for sink in plain.sinks]
    assert len(short.owner.over) == 2
    for ours, theirs in zip(short.statistics, plain.statistics, strict=True):
        for name in ("num_generation_tokens", "inter_token_latencies_iter"):
            assert getattr(ours, name) == getattr(theirs, name)
    finished = [statistics.finished_requests for statistics in short.statistics]
    assert [[one.num_generation_tokens for one in step] for step in finished] == [[], [], [], [2 + 1], [6]]
    tokens = [played.processor.request_states["r2"].detokenizer.output_token_ids for played in (plain, short)]
    assert tokens[0] == tokens[1] == [13, 33]


def test_only_what_has_more_to_say_than_tokens_takes_vllms_way() -> None:
    short = Played(short=True)
    play(short)
    assert short.long == ["r0", "r1", "r2", "gone", "r2", "r1", "r0", "r1"]


def test_what_vllm_tells_of_the_whole_step_is_not_lost() -> None:
    """As the version of the weights, which not every vLLM has."""
    heard: list[Any] = []

    class Processor:
        def __init__(self) -> None:
            self.request_states: dict[str, Any] = {}

        def process_outputs(self, outputs: Any, timestamp: Any, statistics: Any, **more: Any) -> None:
            heard.append((outputs, more))

        def _update_stats_from_output(self) -> None: ...

    from vllm.v1.engine import EngineCoreOutput

    outputs = [output("r0", [1])]
    StepOutputs(Processor(), EngineCoreOutput)(outputs, 1.0, None, weight_version="2")
    assert heard == [(outputs, {"weight_version": "2"})]


@pytest.mark.parametrize(
    "change",
    [
        {"stream_interval": 4},
        {"request_states": None},
        {"process_outputs": lambda outputs: None},
        {"_update_stats_from_output": lambda output: None},
        {"_update_stats_from_output": None},
    ],
)
def test_a_vllm_that_is_built_otherwise_is_left_alone(change: dict[str, Any]) -> None:
    processor = Played(short=False).processor
    for name, value in change.items():
        setattr(processor, name, value)
    before = processor.process_outputs
    assert not shorten(types.SimpleNamespace(output_processor=processor, output_handler=None))
    assert processor.process_outputs == before


def test_nothing_is_changed_under_a_running_output_handler() -> None:
    processor = Played(short=False).processor
    assert not shorten(types.SimpleNamespace(output_processor=processor, output_handler=object()))
    assert not shorten(types.SimpleNamespace())
