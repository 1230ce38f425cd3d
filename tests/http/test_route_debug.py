"""Why a request went where it went, and where it would go."""

from __future__ import annotations

import json
import logging
from types import SimpleNamespace
from typing import Any

import pytest

from dynamo_core.contracts import Route
from dynamo_core.errors import NoInstances
from dynamo_core.http.route_debug import route_text, wants_route

EXPLAIN = {"cost_ms": 1.5, "best": [{"worker": 171, "cost_ms": 1.5}]}


def explained(played: Any) -> None:
    if played.record.routes is not None:
        played.record.routes.append({"worker": 171, "explain": EXPLAIN})
    played.say("Hel", "lo")


def answering(route: Route) -> Any:
    async def query(request: Any) -> Route:
        return route

    return query


@pytest.mark.parametrize("stream", [False, True])
async def test_who_asks_is_told_in_a_header_and_the_log(running: Any, stream: bool, caplog: pytest.LogCaptureFixture) -> None:
    running.model.script = explained
    with caplog.at_level(logging.INFO, "dynamo_core.access"):
        answer = await running.chat(stream=stream, headers={"x-dynamo-debug": "timing, route"})
        silent = await running.chat(stream=stream)
    assert json.loads(answer.headers["x-dynamo-route"]) == [{"worker": 171, "explain": EXPLAIN}]
    assert "x-dynamo-route" not in silent.headers
    lines = [record.getMessage() for record in caplog.records if record.name == "dynamo_core.access"]
    assert len(lines) == 2
    assert lines[0].endswith(f" route={answer.headers['x-dynamo-route']}")
    assert "route=" not in lines[1]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
async def test_a_question_is_answered_and_nothing_is_sent(running: Any, path: str) -> None:
    running.model.query = answering(Route(171, 3, EXPLAIN, dp_rank=1))
    running.model.router = SimpleNamespace(plugin="kv-router")
    body = {"model": "m", "nvext": {"annotations": ["query_instance_id"]}}
    body |= {"prompt": "Once"} if path == "/v1/completions" else {"messages": [{"role": "user", "content": "Hi"}]}
    answer = await running.http.post(path, json=body, headers={"x-dynamo-debug": "route"})
    assert answer.status_code == 200
    told = answer.json()
    assert (told["worker_instance_id"], told["dp_rank"], told["overlap_blocks"], told["router"]) == (171, 1, 3, "kv-router")
    assert told["explain"] == EXPLAIN
    assert told["token_data"]
    assert running.model.generations.empty()
    assert json.loads(answer.headers["x-dynamo-route"])[0]["worker"] == 171
    summary = await running.summaries.get()
    assert (summary.outcome, summary.prompt_tokens, summary.output_tokens) == ("completed", len(told["token_data"]), 0)


async def test_a_streamed_question_has_two_events_as_from_dynamo(running: Any) -> None:
    running.model.query = answering(Route(171))
    running.model.router = SimpleNamespace(plugin="p")
    answer = await running.complete(prompt=[7, 8], stream=True, nvext={"annotations": ["query_instance_id"]})
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.text == 'event: worker_instance_id\n: "171"\n\nevent: token_data\n: [7,8]\n\ndata: [DONE]\n\n'


async def test_a_question_that_nobody_can_answer_fails_as_the_request_would(running: Any) -> None:
    async def nobody(request: Any) -> Any:
        raise NoInstances("No worker serves it.", retry_after=1)

    running.model.query = nobody
    answer = await running.complete(nvext={"annotations": ["query_instance_id"]})
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "1"


@pytest.mark.parametrize(
    ("headers", "fields", "param"),
    [
        ({"x-session-id": "s" * 1025}, {}, "x-session-id"),
        ({"x-dynamo-session-id": "s" * 1025}, {}, "x-dynamo-session-id"),
        ({}, {"nvext": {"session_id": "é" * 600}}, "nvext.session_id"),
        ({}, {"prompt_cache_key": "s" * 2000}, "prompt_cache_key"),
        ({}, {"user": "s" * 2000}, "user"),
    ],
)
async def test_a_session_longer_than_a_kilobyte_is_refused(running: Any, headers: Any, fields: Any, param: str) -> None:
    answer = await running.chat(headers=headers, **fields)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param
    assert "1024 bytes" in answer.json()["error"]["message"]


async def test_a_session_is_the_first_that_is_given(running: Any) -> None:
    running.model.script = lambda played: played.say("x")
    seen = []
    for headers, fields in (
        ({"x-dynamo-session-id": "a", "x-session-id": "b"}, {"user": "e"}),
        ({"x-session-id": "b"}, {"nvext": {"session_id": "c"}}),
        ({}, {"nvext": {"session_id": "c"}, "prompt_cache_key": "d"}),
        ({}, {"prompt_cache_key": "d", "user": "e"}),
        ({}, {"user": "s" * 1024}),
        ({"x-session-id": ""}, {}),
    ):
        await running.chat(headers=headers, **fields)
        seen.append((await running.model.generations.get()).request.session)
    assert seen == ["a", "b", "c", "d", "s" * 1024, None]


def test_whatever_a_router_says_fits_into_a_header() -> None:
    routes = [{"worker": number, "explain": "x" * 1000} for number in range(9)]
    assert len(json.loads(route_text(routes))) == 3
    assert b"object" in route_text([{"worker": 1, "explain": object()}])
    assert route_text([{"worker": 1, "explain": "é\r\nx"}]).isascii()
    assert b"\n" not in route_text([{"worker": 1, "explain": "é\r\nx"}])
    assert not wants_route({"x-dynamo-debug": "routes"})
