"""A plugin's Litestar objects act on every route, streams included; the gate admits before the body is read."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from litestar import Request, Response, get
from litestar.connection import ASGIConnection
from litestar.exceptions import NotAuthorizedException
from litestar.handlers import BaseRouteHandler
from litestar.types import ASGIApp, Message, Receive, Scope, Send

from dynamo_core.contracts import HttpRequestInfo, PreparedRequest, Principal
from dynamo_core.errors import InvalidRequest, NoInstances, PermissionDenied, RateLimited, Unauthenticated
from dynamo_core.specs import HttpSpec


def marking_middleware(app: ASGIApp) -> ASGIApp:
    """Adds a header, and upper-cases what is sent."""

    async def middleware(scope: Scope, receive: Receive, send: Send) -> None:
        async def marking(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"x-marked", b"yes")]
            elif message["type"] == "http.response.body":
                message["body"] = message["body"].replace(b"shout", b"SHOUT")
            await send(message)

        await app(scope, receive, marking)

    return middleware


def guard(connection: ASGIConnection[Any, Any, Any, Any], handler: BaseRouteHandler) -> None:
    if connection.headers.get("x-guard") == "deny":
        raise NotAuthorizedException("The guard says no.")


def no_instances(request: Request[Any, Any, Any], error: NoInstances) -> Response[dict[str, str]]:
    return Response({"plugin": error.message}, status_code=418)


@get("/", opt={"public": True})
async def front_page() -> str:
    return "front"


@get("/private")
async def private_page() -> str:
    return "private"


SPEC = HttpSpec(
    name="all",
    route_handlers=[front_page, private_page],
    middleware=[marking_middleware],
    guards=[guard],
    exception_handlers={NoInstances: no_instances},
)


@pytest.mark.parametrize("stream", [False, True])
async def test_middleware_sees_what_is_sent(serve: Any, stream: bool) -> None:
    running = await serve(compiled={"http": (SPEC,)})
    running.model.script = lambda played: played.say("don't ", "shout")
    answer = await running.chat(stream=stream)
    assert answer.status_code == 200
    assert answer.headers["x-marked"] == "yes"
    assert answer.headers["x-request-id"]
    assert "SHOUT" in answer.text
    assert (await running.summaries.get()).outcome == "completed"
    assert (await running.http.get("/v1/models")).headers["x-marked"] == "yes"


async def test_a_stream_through_middleware_is_not_held_back(serve: Any) -> None:
    running = await serve(compiled={"http": (SPEC,)})
    body = {"model": "m", "messages": [{"role": "user", "content": "x"}], "stream": True}
    reader, writer = await running.raw(running.post("/v1/chat/completions", body))
    played = await running.model.generations.get()
    for text in ("one", "two"):
        played.text(text)
        played.flush()
        await reader.readuntil(text.encode())
    writer.close()


@pytest.mark.parametrize("stream", [False, True])
async def test_a_guard_denies(serve: Any, stream: bool) -> None:
    running = await serve(compiled={"http": (SPEC,)})
    answer = await running.chat(stream=stream, headers={"x-guard": "deny"})
    assert answer.status_code == 401
    assert answer.json()["error"] == {
        "message": "The guard says no.",
        "type": "authentication_error",
        "param": None,
        "code": "unauthorized",
    }
    summary = await running.summaries.get()
    assert (summary.status, summary.outcome) == (401, "rejected")
    assert running.model.generations.empty()


@pytest.mark.parametrize("stream", [False, True])
async def test_an_exception_handler_answers(serve: Any, stream: bool) -> None:
    running = await serve(compiled={"http": (SPEC,)})
    running.model.script = lambda played: played.fail(NoInstances("Nobody is there."))
    answer = await running.chat(stream=stream)
    assert (answer.status_code, answer.json()) == (418, {"plugin": "Nobody is there."})
    summary = await running.summaries.get()
    assert (summary.status, summary.error) == (418, "service_unavailable")


async def test_a_plugin_s_routes_are_served_and_slash_is_free(serve: Any) -> None:
    running = await serve(compiled={"http": (SPEC,)})
    assert (await running.http.get("/")).text == "front"
    assert (await running.http.get("/private")).text == "private"
    assert "/private" in (await running.http.get("/openapi.json")).json()["paths"]


# --- the gate ----------------------------------------------------------------------------------------------------------------


def by_key(request: HttpRequestInfo) -> Principal:
    key = request.headers.get("authorization", "").removeprefix("Bearer ")
    if key == "k":
        return Principal(id="kim")
    if key == "narrow":
        return Principal(id="nat", models=frozenset({"other"}))
    raise Unauthenticated("Send an API key.")


AUTHENTICATED = {"authenticate": by_key, "authenticate_async": False}
KEY = {"authorization": "Bearer k"}


async def test_authentication_comes_before_the_body(serve: Any) -> None:
    running = await serve(compiled=AUTHENTICATED)
    answer = await running.http.post("/v1/chat/completions", content=b"not json at all")
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.json()["error"]["code"] == "invalid_api_key"
    answer = await running.http.post("/v1/chat/completions", content=b"not json at all", headers=KEY)
    assert answer.status_code == 400
    first, second = await running.summaries.get(), await running.summaries.get()
    assert (first.status, first.principal) == (401, None)
    assert (second.status, second.principal) == (400, Principal(id="kim"))


async def test_the_principal_is_in_the_account(serve: Any) -> None:
    running = await serve(compiled=AUTHENTICATED)
    running.model.script = lambda played: played.say("x")
    await running.chat(headers=KEY)
    assert (await running.summaries.get()).principal == Principal(id="kim")


async def test_what_is_public_needs_no_key_and_the_rest_does(serve: Any) -> None:
    running = await serve(compiled={**AUTHENTICATED, "http": (SPEC,)})
    for path in ("/health", "/live", "/ready", "/metrics", "/openapi.json", "/docs", "/"):
        assert (await running.http.get(path)).status_code == 200, path
    for path in ("/v1/models", "/v1/models/m", "/private"):
        assert (await running.http.get(path)).status_code == 401, path
        assert (await running.http.get(path, headers=KEY)).status_code == 200, path


async def test_models_that_a_principal_may_not_use_are_denied_and_not_listed(serve: Any) -> None:
    running = await serve(compiled=AUTHENTICATED)
    narrow = {"authorization": "Bearer narrow"}
    answer = await running.chat(headers=narrow)
    assert (answer.status_code, answer.json()["error"]["param"]) == (403, "model")
    assert (await running.http.get("/v1/models", headers=narrow)).json()["data"] == []
    assert (await running.http.get("/v1/models/m", headers=narrow)).status_code == 404
    assert (await running.http.get("/v1/models", headers=KEY)).json()["data"][0]["id"] == "m"


async def test_async_hooks_are_awaited_in_order(serve: Any) -> None:
    order: list[str] = []

    async def authenticate(request: HttpRequestInfo) -> Principal:
        await asyncio.sleep(0)
        order.append(f"authenticate {request.method} {request.path} {request.client}")
        return Principal(id="kim")

    async def limit(request: HttpRequestInfo, principal: Principal | None) -> None:
        await asyncio.sleep(0)
        order.append(f"limit {principal.id if principal else None}")
        raise RateLimited("Slower, please.", retry_after=3)

    running = await serve(
        compiled={"authenticate": authenticate, "authenticate_async": True, "rate_limit": limit, "rate_limit_async": True}
    )
    answer = await running.chat()
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "3")
    assert order == ["authenticate POST /v1/chat/completions 127.0.0.1", "limit kim"]


async def test_a_limiter_alone_is_asked_without_a_principal(serve: Any) -> None:
    asked: list[Principal | None] = []
    running = await serve(compiled={"rate_limit": lambda request, principal: asked.append(principal)})
    running.model.script = lambda played: played.say("x")
    assert (await running.chat()).status_code == 200
    assert asked == [None]


async def test_prepare_may_change_the_request(serve: Any) -> None:
    seen: list[PreparedRequest] = []

    def prepare(request: PreparedRequest) -> None:
        seen.append(request)
        request.token_ids = [*request.token_ids, 7]
        request.max_tokens = 3
        request.priority = -1

    running = await serve(compiled={"prepare": prepare})
    running.model.script = lambda played: played.say("x")
    assert (await running.complete(prompt=["a", "b"])).status_code == 200
    request = (await running.model.generations.get()).request
    assert tuple(map(list, request.prompts)) == ([1, 97, 7], [1, 98, 7])
    assert (request.conditions.max_tokens, request.priority) == (3, -1)
    assert [prepared.model for prepared in seen] == ["m", "m"]
    assert seen[0].body.prompt == ["a", "b"]
    assert seen[0].endpoint == "completions"


async def test_prepare_may_refuse(serve: Any) -> None:
    async def prepare(request: PreparedRequest) -> None:
        await asyncio.sleep(0)
        if request.headers.get("x-refuse"):
            raise PermissionDenied("Not with this header.")
        raise InvalidRequest("Not today.", param="messages")

    running = await serve(compiled={"prepare": prepare, "prepare_async": True})
    assert (await running.chat(headers={"x-refuse": "1"})).status_code == 403
    assert (await running.chat(stream=True)).status_code == 400
    assert running.model.generations.empty()
    assert (await running.summaries.get()).outcome == "rejected"


async def test_a_preflight_needs_no_key(serve: Any) -> None:
    running = await serve(compiled=AUTHENTICATED)
    assert (await running.http.options("/v1/chat/completions")).status_code == 204
