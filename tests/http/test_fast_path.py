"""Requests that meet no middleware or guard of a plugin do without Litestar, and nobody can tell. What goes wrong on that path is
in test_errors."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from litestar import Litestar, Request, Response
from litestar.types import ASGIApp, Receive, Scope, Send

from dynamo_core.contracts import HttpRequestInfo, Principal
from dynamo_core.errors import DynamoError, NoInstances, Unauthenticated
from dynamo_core.http import app as application
from dynamo_core.specs import HttpSpec

BODY = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}


@pytest.fixture
def through_litestar(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The paths of the requests that came to Litestar's own handler, of applications made from here on."""
    paths: list[str] = []

    class Watched(Litestar):
        def _create_asgi_handler(self) -> ASGIApp:
            inner = super()._create_asgi_handler()

            async def handler(scope: Scope, receive: Receive, send: Send) -> None:
                paths.append(scope["path"])
                await inner(scope, receive, send)

            return handler

    monkeypatch.setattr(application, "Litestar", Watched)
    return paths


def pass_on(app: ASGIApp) -> ASGIApp:
    return app


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("specs", "way"),
    [
        ((), []),
        ((HttpSpec(name="routes"),), []),
        ((HttpSpec(name="middleware", middleware=[pass_on]),), ["/v1/chat/completions", "/v1/completions"]),
        ((HttpSpec(name="guards", guards=[lambda *_: None]),), ["/v1/chat/completions", "/v1/completions"]),
    ],
)
async def test_litestar_is_left_out_unless_a_plugin_acts_in_it(
    serve: Any, through_litestar: list[str], specs: tuple[HttpSpec, ...], way: list[str], stream: bool
) -> None:
    running = await serve(compiled={"http": specs})
    running.model.script = lambda played: played.say("x", "y")
    chat, completion = await running.chat(stream=stream), await running.complete(stream=stream)
    assert (chat.status_code, completion.status_code) == (200, 200)
    assert ("data: [DONE]" in chat.text) is stream
    assert through_litestar == way


def refusal(request: Request[Any, Any, Any], error: DynamoError) -> Response[dict[str, str]]:
    return Response({"plugin": f"{request.method} {error.message}"}, status_code=418)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_plugins_exception_handlers_answer_for_its_errors(serve: Any, through_litestar: list[str], stream: bool) -> None:
    running = await serve(compiled={"http": (HttpSpec(name="handlers", exception_handlers={DynamoError: refusal}),)})
    running.model.script = lambda played: played.fail(NoInstances("Nobody is there."))
    answer = await running.chat(stream=stream)
    assert (answer.status_code, answer.json()) == (418, {"plugin": "POST Nobody is there."})
    assert (await running.http.post("/v1/completions", content=b"{")).status_code == 418
    assert through_litestar == ["/v1/chat/completions", "/v1/completions"]
    running.model.script = lambda played: played.say("x")
    assert (await running.chat(stream=stream)).status_code == 200
    assert len(through_litestar) == 2


async def test_only_a_post_to_the_very_path_takes_it(serve: Any, through_litestar: list[str]) -> None:
    running = await serve()
    running.model.script = lambda played: played.say("x")
    assert (await running.http.post("/v1/chat/completions/", json=BODY)).status_code == 200
    assert (await running.http.get("/v1/chat/completions")).status_code == 405
    assert (await running.http.options("/v1/chat/completions")).status_code == 204
    assert len(through_litestar) == 3


async def test_a_body_in_pieces_is_put_together(serve: Any, through_litestar: list[str]) -> None:
    running = await serve()
    running.model.script = lambda played: played.say("x")
    data = b" " * 200_000 + json.dumps(BODY).encode()

    async def pieces() -> Any:
        for start in range(0, len(data), 60_000):
            yield data[start : start + 60_000]
            await asyncio.sleep(0.01)

    assert (await running.http.post("/v1/chat/completions", content=pieces())).status_code == 200
    assert (await running.summaries.get()).prompt_tokens == len("<user>Hi")
    assert through_litestar == []


async def test_a_client_that_leaves_within_its_body_is_in_the_account(serve: Any, caplog: pytest.LogCaptureFixture) -> None:
    running = await serve()
    whole = running.post("/v1/chat/completions", BODY)
    _, writer = await running.raw(whole[:-5])
    await asyncio.sleep(0.05)
    writer.close()
    summary = await running.summaries.get()
    assert (summary.status, summary.outcome) == (499, "cancelled")
    assert not [record for record in caplog.records if record.levelname in {"ERROR", "CRITICAL"}]


@pytest.mark.parametrize("body", [json.dumps(BODY).encode(), b"no json", b""])
async def test_the_gate_is_asked_once_whatever_becomes_of_the_request(serve: Any, body: bytes) -> None:
    asked: list[str] = []

    def authenticate(request: HttpRequestInfo) -> Principal:
        asked.append("who")
        if "authorization" not in request.headers:
            raise Unauthenticated("Send an API key.")
        return Principal(id="kim")

    def limit(request: HttpRequestInfo, principal: Principal | None) -> None:
        asked.append("how often")

    gate = {"authenticate": authenticate, "authenticate_async": False, "rate_limit": limit, "rate_limit_async": False}
    running = await serve(compiled=gate)
    running.model.script = lambda played: played.say("x")
    status = 200 if body.startswith(b"{") else 400
    path = "/v1/chat/completions"
    assert (await running.http.post(path, content=body, headers={"authorization": "Bearer k"})).status_code == status
    assert asked == ["who", "how often"]
    assert (await running.summaries.get()).principal.id == "kim"
    refused = await running.http.post(path, content=body)
    assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
    assert asked == ["who", "how often", "who"]
