"""``/v1/chat/completions`` through a real server, the openai client and plain HTTP."""

from __future__ import annotations

import asyncio
import functools
from typing import Any

import pytest

from dynamo_core.contracts import SamplingParams
from dynamo_core.serving.output import ChoiceOutput, Logprob

MESSAGES: Any = [{"role": "user", "content": "Hi"}]


def logprob(token: str, value: float = -0.5) -> Logprob:
    top = (Logprob(token, 7, value, token.encode()), Logprob("x", 8, float("-inf"), b"x"))
    return Logprob(token, 7, value, token.encode(), top)


async def test_a_unary_answer_is_openai_s(running: Any) -> None:
    running.model.script = lambda played: played.say("Hel", "lo")
    answer = await running.openai.chat.completions.create(model="m", messages=MESSAGES)
    assert answer.object == "chat.completion"
    assert answer.model == "m"
    assert answer.choices[0].message.content == "Hello"
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].logprobs is None
    assert answer.usage.prompt_tokens == len("<user>Hi")
    assert answer.usage.completion_tokens == 2
    assert answer.usage.total_tokens == len("<user>Hi") + 2
    assert answer.usage.prompt_tokens_details.cached_tokens == 2


async def test_a_stream_has_role_text_reason_and_done(running: Any, sse: Any) -> None:
    running.model.script = lambda played: played.say("Hel", "lo")
    answer = await running.chat(stream=True)
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    *chunks, done = sse(answer.text)
    assert done == "[DONE]"
    assert [chunk["choices"][0]["delta"] for chunk in chunks] == [
        {"role": "assistant", "content": ""},
        {"content": "Hel"},
        {"content": "lo"},
        {},
    ]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None, None, None, "stop"]
    assert {chunk["id"] for chunk in chunks} == {f"chatcmpl-{answer.headers['x-request-id']}"}
    assert {(chunk["object"], chunk["model"], "usage" in chunk) for chunk in chunks} == {("chat.completion.chunk", "m", False)}


async def test_the_openai_client_reads_the_stream_with_usage(running: Any) -> None:
    running.model.script = lambda played: played.say("a", "b", "c")
    stream = await running.openai.chat.completions.create(
        model="m", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == "abc"
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == 3
    assert all(chunk.usage is None for chunk in chunks[:-1])


async def test_continuous_usage_is_on_every_chunk(running: Any, sse: Any) -> None:
    running.model.script = lambda played: played.say("a", "b")
    options = {"include_usage": True, "continuous_usage_stats": True}
    *chunks, _ = sse((await running.chat(stream=True, stream_options=options)).text)
    assert [chunk["usage"]["completion_tokens"] for chunk in chunks] == [1, 1, 2, 2, 2]


async def test_text_that_needs_escaping_arrives_whole(running: Any, sse: Any) -> None:
    text = 'quote " backslash \\ newline \n null \x00 snowman ☃ face 😀 line\u2028separator </script>'
    running.model.script = lambda played: played.say(text)
    assert (await running.chat()).json()["choices"][0]["message"]["content"] == text
    chunks = sse((await running.chat(stream=True)).text)
    assert chunks[1]["choices"][0]["delta"]["content"] == text


async def test_tokens_of_one_burst_leave_as_separate_events_in_one_write(running: Any) -> None:
    reader, writer = await running.raw(running.post("/v1/chat/completions", {"model": "m", "messages": MESSAGES, "stream": True}))
    played = await running.model.generations.get()
    for text in ("a", "b", "c"):
        played.text(text)
    played.flush()
    await reader.readuntil(b"\r\n\r\n")
    size = int(await reader.readline(), 16)
    body = await reader.readexactly(size)
    assert body.count(b"data: ") == 4  # the role and three texts, in one HTTP chunk
    played.finish()
    played.complete()
    assert (await reader.readuntil(b"[DONE]\n\n")).count(b"data: ") == 2
    writer.close()


async def test_choices_of_n_are_told_apart(running: Any, sse: Any) -> None:
    running.model.script = lambda played: played.say("x", "y")
    answer = await running.openai.chat.completions.create(model="m", messages=MESSAGES, n=3)
    assert [(choice.index, choice.message.content) for choice in answer.choices] == [(0, "xy"), (1, "xy"), (2, "xy")]
    *chunks, _ = sse((await running.chat(stream=True, n=2)).text)
    for index in (0, 1):
        deltas = [chunk["choices"][0]["delta"] for chunk in chunks if chunk["choices"][0]["index"] == index]
        assert deltas == [{"role": "assistant", "content": ""}, {"content": "x"}, {"content": "y"}, {}]


async def test_a_generation_without_text_still_has_a_role_and_an_end(running: Any, sse: Any) -> None:
    running.model.script = lambda played: played.say()
    *chunks, _ = sse((await running.chat(stream=True)).text)
    assert [chunk["choices"][0]["delta"] for chunk in chunks] == [{"role": "assistant", "content": ""}, {}]
    assert (await running.chat()).json()["choices"][0]["message"]["content"] == ""


async def test_logprobs_have_bytes_and_alternatives(running: Any) -> None:
    def script(played: Any) -> None:
        played.output(ChoiceOutput("Hé", (7,), (logprob("Hé"),)))
        played.flush()
        played.finish(text="!", logprobs=(logprob("!"),), token_ids=(8,))
        played.complete()

    running.model.script = script
    fields: Any = {"model": "m", "messages": MESSAGES, "logprobs": True, "top_logprobs": 2}
    answer = await running.openai.chat.completions.create(**fields)
    first, second = answer.choices[0].logprobs.content
    assert (first.token, first.logprob, first.bytes) == ("Hé", -0.5, list("Hé".encode()))
    assert [(top.token, top.logprob) for top in first.top_logprobs] == [("Hé", -0.5), ("x", -9999.0)]
    assert second.token == "!"
    assert answer.choices[0].message.content == "Hé!"
    stream = await running.openai.chat.completions.create(**fields, stream=True)
    chunks = [chunk async for chunk in stream]
    told = [entry.token for chunk in chunks if chunk.choices[0].logprobs for entry in chunk.choices[0].logprobs.content]
    assert told == ["Hé", "!"]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "Hé!"
    assert (await running.model.generations.get()).request.logprobs == 2


async def test_the_stop_string_that_ended_it_is_told(running: Any, sse: Any) -> None:
    def script(played: Any) -> None:
        played.finish(text="tail", stop_reason="END")
        played.complete()

    running.model.script = script
    *chunks, _ = sse((await running.chat(stream=True, stop=["END"])).text)
    assert [chunk["choices"][0]["delta"].get("content") for chunk in chunks] == ["", "tail", None]
    assert chunks[-1]["choices"][0]["stop_reason"] == "END"
    assert (await running.chat(stop="END")).json()["choices"][0]["stop_reason"] == "END"


async def test_fields_reach_the_pipeline(running: Any) -> None:
    running.model.script = lambda played: played.say("x")
    await running.chat(
        temperature=0.5, top_p=0.9, n=2, stop=["a", "b"], max_tokens=7, presence_penalty=1, frequency_penalty=-1, seed=3,
        logit_bias={"5": -100}, top_k=4, min_p=0.1, repetition_penalty=1.2, ignore_eos=True, min_tokens=2, stop_token_ids=[9],
        include_stop_str_in_output=True, skip_special_tokens=False, priority=5, cache_salt="s", logprobs=True,
        headers={"x-dynamo-worker-instance-id": "171", "x-dynamo-session-id": "session", "x-other": "seen"},
    )  # fmt: skip
    request = (await running.model.generations.get()).request
    assert request.sampling == SamplingParams(
        temperature=0.5, top_p=0.9, top_k=4, min_p=0.1, frequency_penalty=-1, presence_penalty=1, repetition_penalty=1.2,
        logit_bias={5: -100}, seed=3,
    )  # fmt: skip
    conditions = request.conditions
    assert (conditions.max_tokens, conditions.min_tokens, conditions.ignore_eos, conditions.stop_token_ids) == (7, 2, True, (9,))
    assert (request.n, request.stop, request.include_stop, request.skip_special_tokens) == (2, ("a", "b"), True, False)
    assert (request.priority, request.cache_salt, request.pinned, request.session) == (5, "s", 171, "session")
    assert request.logprobs == 0
    assert request.headers["x-other"] == "seen"


async def test_nulls_mean_defaults_and_the_context_bounds_the_answer(running: Any) -> None:
    running.model.script = lambda played: played.say("x")
    names = (
        "temperature",
        "top_p",
        "n",
        "stop",
        "max_tokens",
        "seed",
        "logit_bias",
        "tools",
        "response_format",
        "stream",
        "user",
    )
    assert (await running.chat(**dict.fromkeys(names))).status_code == 200
    request = (await running.model.generations.get()).request
    assert request.n == 1
    assert request.sampling == SamplingParams()
    assert request.conditions.max_tokens == 1000 - len("<user>Hi")


@pytest.mark.parametrize(
    ("fields", "guided"),
    [
        ({"response_format": {"type": "json_object"}}, {"json": {"type": "object"}}),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"a": 1}}}}, {"json": {"a": 1}}),
        ({"response_format": {"type": "text"}}, None),
        ({"guided_regex": "a+"}, {"regex": "a+"}),
        ({"guided_choice": ["a", "b"]}, {"choice": ["a", "b"]}),
        ({"guided_json": {"type": "string"}}, {"json": {"type": "string"}}),
        ({"guided_grammar": "root ::= x"}, {"grammar": "root ::= x"}),
        ({"structured_outputs": {"regex": "b"}}, {"regex": "b"}),
    ],
)
async def test_structured_output_is_passed_on(running: Any, fields: dict[str, Any], guided: Any) -> None:
    running.model.script = lambda played: played.say("x")
    assert (await running.chat(**fields)).status_code == 200
    assert (await running.model.generations.get()).request.sampling.guided == guided


async def test_max_completion_tokens_wins(running: Any) -> None:
    running.model.script = lambda played: played.say("x")
    await running.chat(max_tokens=5, max_completion_tokens=9)
    assert (await running.model.generations.get()).request.conditions.max_tokens == 9


async def test_tools_and_template_arguments_reach_the_template(running: Any) -> None:
    running.model.script = lambda played: played.say("x")
    tools = [{"type": "function", "function": {"name": "f"}}]
    await running.chat(tools=tools, chat_template_kwargs={"thinking": True}, add_generation_prompt=False)
    await running.chat(tools=tools, tool_choice="none")
    assert running.model.rendered == [{"thinking": True, "add_generation_prompt": False, "tools": tools}, {}]


async def test_a_long_prompt_is_tokenized_off_the_event_loop(running: Any) -> None:
    threads: list[bool] = []
    tokenizer = running.model.tokenizer

    def noting(pack: Any, *arguments: Any) -> Any:
        try:
            asyncio.get_running_loop()
            threads.append(False)
        except RuntimeError:
            threads.append(True)
        return pack(*arguments)

    tokenizer.pack = functools.partial(noting, tokenizer.pack)
    tokenizer.pack_all = functools.partial(noting, tokenizer.pack_all)
    running.model.script = lambda played: played.say("x")
    running.model.card = running.model.card.__class__(name="m", path="/", context_length=100_000)
    await running.chat(messages=[{"role": "user", "content": "a" * 20_000}], max_tokens=1)
    await running.chat()
    assert threads == [True, False]


async def test_an_alias_answers_under_the_name_that_was_asked_for(running: Any) -> None:
    running.model.script = lambda played: played.say("x")
    assert (await running.chat(model="alias")).json()["model"] == "alias"
