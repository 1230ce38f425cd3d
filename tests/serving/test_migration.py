from __future__ import annotations

from typing import Any

import pytest

from dynamo_core.contracts import EngineRequest, SamplingParams, StopConditions
from dynamo_core.serving.migration import obstacle, remainder, resumed

REQUEST = EngineRequest(id="r", token_ids=[1, 2], stop=StopConditions(max_tokens=10, min_tokens=4, stop_token_ids=(9,)))


def test_generated_tokens_become_prompt_and_limits_shrink() -> None:
    after = resumed(REQUEST, [3, 4, 5])
    assert list(after.token_ids) == [1, 2, 3, 4, 5]
    assert after.stop == StopConditions(max_tokens=7, min_tokens=1, stop_token_ids=(9,))
    assert resumed(REQUEST, [3] * 6).stop.min_tokens == 0


def test_without_tokens_the_request_is_sent_again_as_it_was() -> None:
    assert resumed(REQUEST, []) is REQUEST


def test_nothing_remains_when_only_the_finish_reason_was_lost() -> None:
    assert remainder(REQUEST, [3] * 9) == 1
    assert remainder(REQUEST, [3] * 10) == 0


@pytest.mark.parametrize(
    "sampling",
    [
        SamplingParams(frequency_penalty=0.1),
        SamplingParams(presence_penalty=-1.0),
        SamplingParams(repetition_penalty=1.1),
        SamplingParams(guided={"regex": "a"}),
    ],
)
def test_sampling_that_looks_at_more_than_the_tokens_is_an_obstacle(sampling: SamplingParams) -> None:
    assert obstacle(EngineRequest(id="r", token_ids=[1], sampling=sampling))


@pytest.mark.parametrize(
    "sampling",
    [
        SamplingParams(),
        SamplingParams(temperature=1.0, seed=5, top_p=0.9),
        SamplingParams(logit_bias={5: 1.0}),
        SamplingParams(frequency_penalty=0.0, presence_penalty=0.0, repetition_penalty=1.0),
    ],
)
def test_other_sampling_is_continued(sampling: SamplingParams) -> None:
    assert obstacle(EngineRequest(id="r", token_ids=[1], sampling=sampling)) is None


def test_log_probabilities_of_the_prompt_are_an_obstacle() -> None:
    assert obstacle(EngineRequest(id="r", token_ids=[1], prompt_logprobs=1))
    assert obstacle(EngineRequest(id="r", token_ids=[1], logprobs=1)) is None


@pytest.mark.parametrize(
    ("sampling", "resume", "continued"),
    [
        (SamplingParams(presence_penalty=1.0), {"penalties": "exact"}, True),
        (SamplingParams(guided={"regex": "a"}), {"penalties": "exact"}, False),
        (SamplingParams(temperature=1.0, seed=5), {"seed": "greedy-only"}, False),
        (SamplingParams(seed=5), {"seed": "greedy-only"}, False),  # the default temperature is not 0
        (SamplingParams(temperature=0.0, seed=5), {"seed": "greedy-only"}, True),
        (SamplingParams(temperature=1.0), {"seed": "greedy-only"}, True),
        (SamplingParams(temperature=0.0, logit_bias={5: 1.0}), {"logit_bias": "none"}, False),
        (SamplingParams(), {"logit_bias": "none", "min_tokens": "none", "something": "none"}, True),
    ],
)
def test_an_engine_says_what_it_continues(sampling: SamplingParams, resume: Any, continued: bool) -> None:
    assert (obstacle(EngineRequest(id="r", token_ids=[1], sampling=sampling), resume) is None) is continued


def test_min_tokens_are_an_obstacle_where_the_engine_says_so() -> None:
    request = EngineRequest(id="r", token_ids=[1], stop=StopConditions(max_tokens=9, min_tokens=3))
    assert obstacle(request) is None
    assert obstacle(request, {"min_tokens": "none"}) == "min_tokens cannot be continued"
