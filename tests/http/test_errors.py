"""OpenAI's error envelope, for every cause, on the fast path and on Litestar's own."""

from __future__ import annotations

import json
import re
from functools import partial
from typing import Any

import openai
import pytest
from litestar.connection import ASGIConnection
from litestar.handlers import BaseRouteHandler

from dynamo_core.errors import (
    DeadlineExceeded,
    DynamoError,
    EngineError,
    NoInstances,
    Overloaded,
    RateLimited,
    ServiceUnavailable,
)
from dynamo_core.specs import HttpSpec

FOREIGN = re.compile(r"Expected|got `|\$\.|msgspec|\bStruct\b|Validation failed|Object missing|malformed", re.IGNORECASE)
"""Words of msgspec and Litestar."""


def allow(connection: ASGIConnection[Any, Any, Any, Any], handler: BaseRouteHandler) -> None:
    """A guard: with one there is no fast path."""


@pytest.fixture(params=[(), (HttpSpec(name="guarded", guards=[allow]),)], ids=["fast", "litestar"])
def either(serve: Any, request: pytest.FixtureRequest) -> Any:
    """``serve``, one way and the other."""
    return partial(serve, compiled={"http": request.param})


@pytest.fixture
async def running(either: Any) -> Any:
    return await either()


def check(answer: Any, status: int, param: str | None = None, code: str | None = None) -> str:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-request-id"]
    body = answer.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["param"] == param
    if code is not None:
        assert body["error"]["code"] == code
    message = body["error"]["message"]
    assert not FOREIGN.search(message), message
    assert message.endswith((".", "?")), message
    return message


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"max_tokens": -1}, "max_tokens", "`max_tokens` must be at least 1."),
        ({"max_tokens": 0}, "max_tokens", "`max_tokens` must be at least 1."),
        ({"max_tokens": "5"}, "max_tokens", "`max_tokens` must be an integer or null, not a string."),
        ({"max_tokens": 1.5}, "max_tokens", "`max_tokens` must be an integer or null, not a number."),
        ({"max_completion_tokens": -3}, "max_completion_tokens", None),
        ({"temperature": 9}, "temperature", "`temperature` must be at most 2."),
        ({"temperature": "hot"}, "temperature", None),
        ({"top_p": 0}, "top_p", "`top_p` must be greater than 0."),
        ({"n": 0}, "n", None),
        ({"n": 1000}, "n", "`n` must be at most 128."),
        ({"seed": 2**70}, "seed", None),
        ({"seed": 1e400}, "seed", None),
        ({"stop": 3}, "stop", "`stop` must be a string, an array or null, not an integer."),
        ({"stop": ["a", 3]}, "stop[1]", "`stop[1]` must be a string, not an integer."),
        ({"stop": ["a", ""]}, "stop", None),
        ({"logit_bias": {"a": 1}}, "logit_bias", None),
        ({"logit_bias": {"1": 1000}}, "logit_bias", None),
        ({"logit_bias": []}, "logit_bias", None),
        ({"stream": "yes"}, "stream", "`stream` must be a boolean or null, not a string."),
        ({"stream_options": {"include_usage": True}}, "stream_options", None),
        ({"stream": True, "stream_options": {"include_usage": 1}}, "stream_options.include_usage", None),
        ({"messages": []}, "messages", "`messages` must have at least 1 item."),
        ({"messages": "Hi"}, "messages", "`messages` must be an array, not a string."),
        ({"messages": [3]}, "messages[0]", None),
        ({"messages": [{"content": "x"}]}, "messages[0].role", None),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "`messages[0].content` is required."),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content", None),
        ({"messages": [{"role": "user", "content": ["x"]}]}, "messages[0].content[0]", None),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text", None),
        ({"model": 5}, "model", None),
        ({"model": None}, "model", None),
        ({"top_logprobs": 3}, "top_logprobs", None),
        ({"logprobs": True, "top_logprobs": 30}, "top_logprobs", None),
        ({"min_tokens": 10, "max_tokens": 5}, "min_tokens", None),
        ({"response_format": {"type": "yaml"}}, "response_format.type", None),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", None),
        ({"response_format": {}}, "response_format.type", "`response_format.type` is required."),
        ({"guided_regex": "a", "guided_json": {}}, "guided_regex", None),
        ({"guided_choice": []}, "guided_choice", None),
    ],
)
async def test_a_field_that_does_not_fit_is_named(running: Any, fields: dict[str, Any], param: str, words: str | None) -> None:
    base = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}
    body = json.dumps({**base, **fields}).replace("Infinity", "1e400")
    message = check(await running.http.post("/v1/chat/completions", content=body), 400, param)
    assert words is None or message == words


HALF_PAIR = "The request body is not valid JSON: it holds half of a surrogate pair (as in \\ud83d), which is no character."


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "The request body is missing; send a JSON object."),
        (b"{", "The request body is not valid JSON: it ends too early."),
        (b'{"model": "\\ud83d"}', HALF_PAIR),
        (b'{"model": "\\ud83d and more"}', HALF_PAIR),
        (b'{"model": "\\udc00"}', HALF_PAIR),
        (b'{"model": "\\ud83d\\u0041"}', HALF_PAIR),
        (b'{"model": "\\ud83d\\ude00', "The request body is not valid JSON: it ends too early."),
        (b"{not json}", "The request body is not valid JSON at byte 1."),
        (b'{"model": "m",}', None),
        (b'{"model": "m", "messages": [{}]} x', None),
        (b'{"model": "\xff"}', "The request body is not valid JSON: it is not UTF-8."),
        (b"[]", "The request body must be an object, not an array."),
        (b"3", None),
        (b"null", None),
        (b'{"model": "m", "messages": [{"a":' + b"[" * 100_000, "The request body is nested too deeply."),
    ],
)
async def test_a_body_that_is_no_request_is_a_400(running: Any, body: bytes, words: str | None) -> None:
    message = check(await running.http.post("/v1/chat/completions", content=body), 400)
    assert words is None or message == words


async def test_missing_fields_are_named(running: Any) -> None:
    assert check(await running.http.post("/v1/completions", json={"prompt": "x"}), 400, "model") == "`model` is required."
    assert check(await running.http.post("/v1/completions", json={"model": "m"}), 400, "prompt") == "`prompt` is required."


async def test_a_form_is_not_json(running: Any) -> None:
    check(await running.http.post("/v1/completions", data={"model": "m"}), 400)


async def test_unknown_fields_are_ignored_and_named_at_debug(running: Any, caplog: pytest.LogCaptureFixture) -> None:
    running.model.script = lambda played: played.say("x")
    with caplog.at_level("DEBUG", "dynamo_core.http.body"):
        assert (await running.chat(foo=1, bar={"baz": 2})).status_code == 200
    assert "foo, bar" in caplog.text


async def test_routes_that_are_not_there(running: Any) -> None:
    message = check(await running.http.get("/v1/nothing"), 404, None, "route_not_found")
    assert message == "There is no route GET /v1/nothing; /docs lists those that there are."
    check(await running.http.get("/"), 404)
    answer = await running.http.get("/v1/chat/completions")
    assert check(answer, 405, None, "method_not_allowed") == "/v1/chat/completions does not take GET; use POST."
    assert "POST" in answer.headers["allow"]


async def test_a_body_over_the_limit_is_a_413_and_the_server_goes_on(either: Any) -> None:
    running = await either(http_body_limit_mb=0.001)
    running.model.script = lambda played: played.say("x")
    message = check(await running.complete(prompt="x" * 2000), 413, None, "request_too_large")
    assert "0.001 MiB" in message

    async def chunked() -> Any:
        for _ in range(100):
            yield b"x" * 1000

    check(await running.http.post("/v1/completions", content=chunked()), 413)
    assert (await running.complete()).status_code == 200
    summary = await running.summaries.get()
    assert (summary.status, summary.outcome, summary.error) == (413, "rejected", "request_too_large")


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
async def test_a_prompt_longer_than_the_context_is_a_400(running: Any, path: str) -> None:
    field = "messages" if "chat" in path else "prompt"
    body: dict[str, Any] = {"model": "m", "prompt": "x" * 1000, "messages": [{"role": "user", "content": "x" * 1000}]}
    check(await running.http.post(path, json=body), 400, field, "context_length_exceeded")
    short = {**body, "prompt": "x" * 900, "messages": [{"role": "user", "content": "x" * 900}], "max_tokens": 200}
    check(await running.http.post(path, json=short), 400, "max_tokens", "context_length_exceeded")
    summary = await running.summaries.get()
    assert (summary.status, summary.outcome, summary.error) == (400, "rejected", "context_length_exceeded")


async def test_an_unknown_model_is_a_404(running: Any) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        await running.openai.chat.completions.create(model="nobody", messages=[{"role": "user", "content": "x"}])
    assert caught.value.code == "model_not_found"
    assert caught.value.param == "model"
    check(await running.http.get("/v1/models/nobody"), 404, "model", "model_not_found")


@pytest.mark.parametrize(
    ("error", "status", "retry"),
    [
        (NoInstances("No worker serves the model `m` now."), 503, "1"),
        (ServiceUnavailable("Loading.", retry_after=2.5), 503, "3"),
        (Overloaded("Every worker is full."), 503, "1"),
        (RateLimited("Slower.", retry_after=7), 429, "7"),
        (DeadlineExceeded("Too late."), 504, None),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_an_error_before_the_first_token_has_its_status(
    running: Any, error: DynamoError, status: int, retry: str | None, stream: bool
) -> None:
    running.model.script = lambda played: played.fail(error)
    answer = await running.chat(stream=stream)
    assert check(answer, status, None, error.code) == error.message
    assert answer.headers.get("retry-after") == retry
    assert (await running.summaries.get()).status == status


async def test_no_worker_for_a_known_model_is_a_503(running: Any) -> None:
    running.manager.error = ServiceUnavailable("The model 'm' is loading; try again in a moment.", retry_after=1)
    answer = await running.chat()
    check(answer, 503, None, "service_unavailable")
    assert answer.headers["retry-after"] == "1"


@pytest.mark.parametrize("error", [EngineError("CUDA error in /opt/secret.py"), DynamoError("secret.py")])
async def test_an_engine_s_failure_shows_nothing_of_its_inside(
    running: Any, error: DynamoError, caplog: pytest.LogCaptureFixture
) -> None:
    running.model.script = lambda played: played.fail(error)
    answer = await running.chat(headers={"x-request-id": "mine"})
    assert "secret" not in check(answer, 500)
    assert "secret.py" in caplog.text
    assert "mine" in caplog.text


@pytest.mark.parametrize("error", [EngineError("secret", code="router_error"), DynamoError("secret", code="plugin_failed")])
async def test_a_plugin_s_failure_is_not_put_on_the_engine(running: Any, error: DynamoError) -> None:
    running.model.script = lambda played: played.fail(error)
    assert check(await running.chat(), 500, None, error.code).startswith("A plugin of the server failed on this request;")


async def test_a_bug_is_a_500_without_its_words(running: Any, caplog: pytest.LogCaptureFixture) -> None:
    running.manager.error = KeyError("secret")
    answer = await running.chat()
    assert "secret" not in check(answer, 500, None, "internal_error")
    assert "KeyError" in caplog.text
    summary = await running.summaries.get()
    assert (summary.status, summary.outcome) == (500, "failed")


async def test_an_error_after_the_first_token_is_an_event(running: Any, sse: Any) -> None:
    def script(played: Any) -> None:
        played.text("a")
        played.flush()
        played.fail(NoInstances("The worker went away, and there is no other."))

    running.model.script = script
    answer = await running.chat(stream=True)
    assert answer.status_code == 200
    *_, chunk, error, done = sse(answer.text)
    assert chunk["choices"][0]["delta"] == {"content": "a"}
    assert error["error"]["code"] == "service_unavailable"
    assert error["error"]["type"] == "service_unavailable"
    assert done == "[DONE]"
    summary = await running.summaries.get()
    assert (summary.status, summary.outcome, summary.error, summary.output_tokens) == (503, "failed", "service_unavailable", 1)
    unary = await running.chat()
    check(unary, 503)


async def test_the_openai_client_raises_for_an_error_event(running: Any) -> None:
    def script(played: Any) -> None:
        played.text("a")
        played.flush()
        played.fail(EngineError("boom"))

    running.model.script = script
    stream = await running.openai.chat.completions.create(model="m", messages=[{"role": "user", "content": "x"}], stream=True)
    with pytest.raises(openai.APIError, match="engine failed"):
        [chunk async for chunk in stream]


@pytest.mark.parametrize(("sent", "kept"), [("abc-123:x", True), ("a b", False), ('"x"', False), ("x" * 200, False)])
async def test_a_sane_request_id_is_echoed_and_others_replaced(running: Any, sent: str, kept: bool) -> None:
    running.model.script = lambda played: played.say("x")
    for stream in (False, True):
        answer = await running.chat(headers={"x-request-id": sent}, stream=stream)
        assert (answer.headers["x-request-id"] == sent) is kept
        assert answer.headers.get_list("x-request-id") == [answer.headers["x-request-id"]]
    for path in ("/health", "/nothing", "/v1/models", "/openapi.json"):
        assert (await running.http.get(path, headers={"x-request-id": sent})).headers["x-request-id"] == sent or not kept


async def test_a_worker_header_that_is_no_number_is_a_400(running: Any) -> None:
    check(await running.chat(headers={"x-dynamo-worker-instance-id": "x"}), 400, "x-dynamo-worker-instance-id")
