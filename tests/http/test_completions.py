"""``/v1/completions``: every form of prompt, echo and the old log-probability format."""

from __future__ import annotations

from typing import Any

import pytest

from dynamo_core.serving.output import ChoiceOutput, Logprob


def ids(text: str) -> list[int]:
    return [ord(character) for character in text]


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ("ab", ([1, *ids("ab")],)),
        (["ab"], ([1, *ids("ab")],)),
        (["ab", "c"], ([1, *ids("ab")], [1, *ids("c")])),
        (ids("ab"), (ids("ab"),)),
        ([ids("ab"), ids("c")], (ids("ab"), ids("c"))),
    ],
)
async def test_every_form_of_prompt_is_taken(running: Any, prompt: Any, prompts: Any) -> None:
    running.model.script = lambda played: played.say("x")
    answer = await running.openai.completions.create(model="m", prompt=prompt)
    assert [choice.text for choice in answer.choices] == ["x"] * len(prompts)
    request = (await running.model.generations.get()).request
    assert tuple(map(list, request.prompts)) == prompts
    assert request.endpoint == "completions"
    assert request.conditions.max_tokens == 16
    assert answer.usage.prompt_tokens == sum(map(len, prompts))


async def test_a_unary_answer_is_openai_s(running: Any) -> None:
    running.model.script = lambda played: played.say("Hel", "lo")
    answer = await running.openai.completions.create(model="m", prompt="Once", n=2, max_tokens=5)
    assert answer.object == "text_completion"
    assert answer.id.startswith("cmpl-")
    assert [(choice.index, choice.text, choice.finish_reason) for choice in answer.choices] == [
        (0, "Hello", "stop"),
        (1, "Hello", "stop"),
    ]


async def test_a_stream_has_text_reason_usage_and_done(running: Any, sse: Any) -> None:
    running.model.script = lambda played: played.say("Hel", "lo")
    *chunks, usage, done = sse((await running.complete(stream=True, stream_options={"include_usage": True})).text)
    assert done == "[DONE]"
    assert [(chunk["choices"][0]["text"], chunk["choices"][0]["finish_reason"]) for chunk in chunks] == [
        ("Hel", None),
        ("lo", None),
        ("", "stop"),
    ]
    assert all(chunk["object"] == "text_completion" and chunk["usage"] is None for chunk in chunks)
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == 2


async def test_echo_begins_with_the_prompt(running: Any, sse: Any) -> None:
    running.model.script = lambda played: played.say("x")
    answer = (await running.complete(prompt=["ab", "c"], n=2, echo=True)).json()
    assert [choice["text"] for choice in answer["choices"]] == ["abx", "abx", "cx", "cx"]
    *chunks, _ = sse((await running.complete(prompt=ids("ab"), echo=True, stream=True)).text)
    assert [chunk["choices"][0]["text"] for chunk in chunks] == ["ab", "x", ""]


async def test_logprobs_have_offsets_and_alternatives(running: Any, sse: Any) -> None:
    def script(played: Any) -> None:
        for token in ("Hé", "l"):
            top = (Logprob("x", 8, -0.1, b"x"), Logprob("y", 9, -0.2, b"y"))
            played.output(ChoiceOutput(token, (7,), (Logprob(token, 7, -0.5, token.encode(), top),)))
            played.flush()
        played.finish("length")
        played.complete()

    running.model.script = script
    answer = await running.openai.completions.create(model="m", prompt="a", logprobs=2)
    told = answer.choices[0].logprobs
    assert told.tokens == ["Hé", "l"]
    assert told.token_logprobs == [-0.5, -0.5]
    assert told.text_offset == [0, 2]
    assert told.top_logprobs[0] == {"x": -0.1, "y": -0.2, "Hé": -0.5}
    *chunks, _ = sse((await running.complete(logprobs=2, stream=True)).text)
    offsets = [chunk["choices"][0]["logprobs"]["text_offset"] for chunk in chunks if chunk["choices"][0]["logprobs"]]
    assert offsets == [[0], [2]]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": []}, "prompt"),
        ({"prompt": ["a", 3]}, "prompt"),
        ({"prompt": [[3], 3]}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": [1_114_112]}, "prompt"),
        ({"prompt": [-1]}, "prompt[0]"),
        ({"prompt": [[1, "a"]]}, "prompt[0][1]"),
        ({"prompt": 3}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"suffix": "x"}, "suffix"),
        ({"best_of": 3}, "best_of"),
        ({"echo": True, "logprobs": 1}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"prompt": ["a"] * 20, "n": 100}, "prompt"),
    ],
)
async def test_what_cannot_be_is_a_400_that_names_the_field(running: Any, fields: dict[str, Any], param: str) -> None:
    answer = await running.complete(**fields)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param
    assert answer.json()["error"]["type"] == "invalid_request_error"
