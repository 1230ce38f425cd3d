"""Output filters stand between a generation and its client."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from dynamo_core.contracts import Context, StopConditions
from dynamo_core.errors import DynamoError, PermissionDenied

MANY = StopConditions(max_tokens=1000)


class Upper:
    def push(self, text: str) -> str:
        return text.upper()

    def finish(self) -> str:
        return ""


class Hold:
    """Tells everything at the end, backwards."""

    def __init__(self) -> None:
        self.text = ""

    def push(self, text: str) -> str:
        self.text += text
        return ""

    def finish(self) -> str:
        return self.text[::-1]


class Broken:
    def __init__(self, at: str) -> None:
        self.at = at

    def push(self, text: str) -> str:
        if text == self.at:
            raise PermissionDenied("not for you")
        return text

    def finish(self) -> str:
        if self.at == "finish":
            raise DynamoError("A plugin failed.", code="plugin_failed")
        return ""


def letters(text: str) -> list[int]:
    return [ord(letter) for letter in text]


async def begin(on: Any, **options: Any) -> tuple[Any, Any]:
    asked = on.generate("abc", conditions=MANY, **options)
    for _ in range(3):
        await asyncio.sleep(0)
    return asked, on.streams[-1]


async def test_a_filter_changes_what_is_told_and_not_what_is_counted(stage: Any) -> None:
    asked, stream = await begin(stage(open_filter=lambda stream: Upper()))
    stream.items(*letters("hey"))
    stream.end({"finish_reason": "stop"})
    assert asked.sink.texts == {0: "HEY"}
    assert asked.sink.usage.output_tokens == 3


async def test_what_a_filter_holds_back_comes_with_the_end(stage: Any) -> None:
    asked, stream = await begin(stage(open_filter=lambda stream: Hold()))
    stream.items(*letters("hey"))
    assert [call[0] for call in asked.sink.calls] == ["flush"]
    stream.end({"finish_reason": "stop"})
    assert asked.sink.outputs[0][-1].text == "yeh"


async def test_a_filter_sees_the_text_after_stop_strings(stage: Any) -> None:
    asked, stream = await begin(stage(open_filter=lambda stream: Hold()), stop=("stop",))
    stream.items(*letters("go on stop it"))
    assert asked.sink.texts == {0: "go on "[::-1]}
    assert asked.sink.reasons() == {0: "stop"}


async def test_each_choice_is_asked_for_and_may_be_left_alone(stage: Any) -> None:
    seen = []

    def open_filter(stream: Any) -> Any:
        seen.append(stream)
        return Upper() if stream.index == 1 else None

    on = stage(open_filter=open_filter)
    asked, _ = await begin(on, n=2, headers={"x-user": "ann"})
    for stream in on.streams[-2:]:
        stream.items(*letters("hey"))
        stream.end({"finish_reason": "stop"})
    assert asked.sink.texts == {0: "hey", 1: "HEY"}
    assert [(one.request_id, one.model, one.endpoint, one.index, one.headers) for one in seen] == [
        ("r", "letters", "completions", index, {"x-user": "ann"}) for index in (0, 1)
    ]


async def test_a_stream_that_nobody_filters_has_its_own_sink(stage: Any) -> None:
    asked, _ = await begin(stage(open_filter=lambda stream: None))
    assert asked.generation.sink is asked.sink


async def test_a_filtered_choice_has_no_log_probabilities(stage: Any) -> None:
    asked, stream = await begin(stage(open_filter=lambda stream: Upper()), logprobs=1)
    stream.items({"token_ids": letters("a"), "logprobs": [[ord("a"), -0.5, [[ord("a"), -0.5]]]]})
    stream.end({"finish_reason": "stop"})
    assert asked.sink.texts == {0: "A"}
    assert [output.logprobs for output in asked.sink.outputs[0]] == [None, None]


@pytest.mark.parametrize(("at", "error"), [("e", PermissionDenied), ("finish", DynamoError)])
async def test_a_filter_that_raises_fails_its_request_alone(stage: Any, at: str, error: type[DynamoError]) -> None:
    on = stage(open_filter=lambda stream: Broken(at))
    asked, stream = await begin(on)
    stream.items(*letters("hey"))
    stream.end({"finish_reason": "stop"})
    assert type(asked.sink.error) is error
    assert asked.sink.texts[0] == ("h" if at == "e" else "hey")
    assert on.idle()
    other, stream = await begin(stage(open_filter=lambda stream: Broken("x")))
    stream.end(*letters("ok"), {"finish_reason": "stop"})
    assert other.sink.texts == {0: "ok"}


async def test_a_refusal_when_the_stream_opens_is_raised_before_anything_runs(stage: Any) -> None:
    def refuse(stream: Any) -> Any:
        raise PermissionDenied("not for you")

    on = stage(open_filter=refuse)
    with pytest.raises(PermissionDenied):
        on.generate("abc", conditions=MANY)
    assert on.streams == []
    assert on.idle()


async def test_a_cancelled_stream_gets_nothing_of_what_was_held_back(stage: Any) -> None:
    context = Context()
    asked, stream = await begin(stage(open_filter=lambda stream: Hold()), context=context)
    stream.items(*letters("hey"))
    context.stop_generating()
    stream.end({"finish_reason": "cancelled"})
    assert asked.sink.outputs[0][-1].text == ""
    assert asked.sink.reasons() == {0: "cancelled"}
