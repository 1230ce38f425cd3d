"""Health, metrics, the access log, models and what the API says of itself."""

from __future__ import annotations

import logging
import re
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from dynamo_core.errors import NoInstances
from dynamo_core.http.admin import Health
from dynamo_core.http.admin.metrics import merge_worker_metrics
from dynamo_core.runtime.stores import StoreCollector, StoreState


async def samples(running: Any) -> dict[str, float]:
    text = (await running.http.get("/metrics")).text
    return {
        sample.name + "".join(f"|{value}" for _, value in sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


# --- models ------------------------------------------------------------------------------------------------------------------


async def test_models_are_listed_and_found_by_name_and_alias(running: Any) -> None:
    found = (await running.openai.models.list()).data
    assert [(model.id, model.object, model.created, model.owned_by) for model in found] == [("m", "model", 1700000000, "dynamo")]
    assert found[0].context_window == 1000
    assert (await running.openai.models.retrieve("m")).id == "m"
    assert (await running.openai.models.retrieve("alias")).id == "alias"


async def test_a_model_without_workers_is_not_listed_but_known(running: Any) -> None:
    running.model.ready = False
    assert (await running.openai.models.list()).data == []
    assert (await running.openai.models.retrieve("m")).id == "m"


async def test_a_model_s_name_may_have_slashes(serve: Any) -> None:
    model = type((await serve()).model)("org/model-7b")
    running = await serve(models=(model,))
    assert (await running.http.get("/v1/models/org/model-7b")).json()["id"] == "org/model-7b"


# --- health ------------------------------------------------------------------------------------------------------------------


async def test_health_live_and_ready(running: Any) -> None:
    assert (await running.http.get("/live")).json() == {"status": "live"}
    answer = await running.http.get("/health")
    assert (answer.status_code, answer.json()) == (
        200,
        {"status": "healthy", "models": {"m": {"ready": True, "instances": []}}},
    )
    assert (await running.http.get("/ready")).status_code == 200
    running.model.ready = False
    assert (await running.http.get("/health")).status_code == 200
    answer = await running.http.get("/ready")
    assert (answer.status_code, answer.json()["status"]) == (503, "not_ready")


async def test_a_draining_frontend_says_so(running: Any) -> None:
    running.health.draining = True
    answer = await running.http.get("/health")
    assert (answer.status_code, answer.json()["status"]) == (503, "draining")
    assert (await running.http.get("/ready")).status_code == 503
    assert (await running.http.get("/live")).status_code == 200


# --- metrics -----------------------------------------------------------------------------------------------------------------


async def test_requests_are_counted_by_what_became_of_them(running: Any) -> None:
    running.model.script = lambda played: played.say("a", "b", "c")
    await running.chat()
    await running.chat(stream=True)
    await running.complete()
    running.model.script = lambda played: played.fail(NoInstances("Nobody."))
    await running.chat()
    await running.chat(max_tokens=-1)
    await running.chat(model="nobody")
    found = await samples(running)
    prefix = "dynamo_frontend_requests_total|chat_completions"
    assert found[f"{prefix}||m|unary|success"] == 1
    assert found[f"{prefix}||m|stream|success"] == 1
    assert found["dynamo_frontend_requests_total|completions||m|unary|success"] == 1
    assert found[f"{prefix}|unavailable|m|unary|error"] == 1
    assert found[f"{prefix}|validation|unknown_model|unary|error"] == 1
    assert found[f"{prefix}|not_found|unknown_model|unary|error"] == 1
    assert found["dynamo_frontend_output_tokens_total|m"] == 9
    assert found["dynamo_frontend_inflight_requests|m"] == 0
    for name in ("time_to_first_token_seconds", "request_duration_seconds", "input_sequence_tokens", "output_sequence_tokens"):
        assert found[f"dynamo_frontend_{name}_count|m"] == 3, name
    assert found["dynamo_frontend_inter_token_latency_seconds_count|m"] == 6
    assert found["dynamo_frontend_output_sequence_tokens_sum|m"] == 9
    assert found["dynamo_frontend_cached_tokens_sum|m"] == 6


async def test_what_runs_is_in_flight(running: Any) -> None:
    _, writer = await running.raw(
        running.post("/v1/chat/completions", {"model": "m", "messages": [{"role": "user", "content": "x"}]})
    )
    await running.model.generations.get()
    assert (await samples(running))["dynamo_frontend_inflight_requests|m"] == 1
    writer.transport.abort()
    await running.summaries.get()
    found = await samples(running)
    assert found["dynamo_frontend_inflight_requests|m"] == 0
    assert found["dynamo_frontend_requests_total|chat_completions|cancelled|m|unary|error"] == 1


async def test_the_engines_metrics_are_merged_without_duplicates(running: Any) -> None:
    text = b'# HELP vllm:n Requests.\n# TYPE vllm:n gauge\nvllm:n{model_name="m"} 3\n# TYPE c_total counter\nc_total 1\n'
    running.manager.engine_metrics = {10: text, 11: text, 12: b"{{{ not metrics"}
    body = (await running.http.get("/metrics")).text
    assert body.count("# TYPE vllm:n gauge") == 1
    assert re.findall(r'vllm:n\{model_name="m",worker_id="(\w+)"\} 3.0', body) == ["a", "b"]
    assert body.count("c_total{") == 2
    openmetrics = (await running.http.get("/metrics", headers={"accept": "application/openmetrics-text; version=1.0.0"})).text
    assert openmetrics.count("# EOF") == 1
    assert openmetrics.endswith("# EOF\n")


async def test_a_family_that_engine_and_frontend_share_is_told_once_with_the_series_of_both(running: Any) -> None:
    running.manager.engine_metrics = {10: b"# TYPE process_open_fds gauge\nprocess_open_fds 7\n"}
    body = (await running.http.get("/metrics")).text
    assert body.count("# TYPE process_open_fds gauge") == 1
    assert len(re.findall(r"^process_open_fds(?:{.*})? ", body, re.MULTILINE)) == 2
    assert 'process_open_fds{worker_id="a"} 7.0' in body


def test_an_engine_that_tells_a_series_twice_is_told_once() -> None:
    (family,) = merge_worker_metrics({1: b"# TYPE a gauge\na 1\na 2\n"})
    assert [(sample.labels, sample.value) for sample in family.samples] == [({"worker_id": "1"}, 1.0)]


# --- the access log ----------------------------------------------------------------------------------------------------------


async def test_one_line_a_request(running: Any, caplog: pytest.LogCaptureFixture) -> None:
    running.model.script = lambda played: played.say("a", "b")
    with caplog.at_level(logging.INFO, "dynamo_core.access"):
        await running.chat(stream=True, headers={"x-request-id": "abc"})
        await running.chat(model="nobody", headers={"x-request-id": "def"})
        await running.http.get("/v1/models", headers={"x-request-id": "ghi"})
        await running.http.get("/health")
        await running.http.get("/nothing", headers={"x-request-id": "jkl"})
        await running.http.get("/live")  # by its answer the lines before are written
    lines = [record.getMessage() for record in caplog.records if record.name == "dynamo_core.access"]
    assert len(lines) == 4
    assert re.fullmatch(
        r"POST /v1/chat/completions 200 model=m tokens=8\+2 cached=2 ttft=0\.\d+s duration=0\.\d+s worker=ab outcome=completed"
        r" request=abc",
        lines[0],
    )
    assert "404 model=nobody" in lines[1]
    assert "worker=- outcome=rejected error=model_not_found request=def" in lines[1]
    assert re.fullmatch(r"GET /v1/models 200 duration=0\.\d+s request=ghi", lines[2])
    assert lines[3].startswith("GET /nothing 404")


async def test_the_access_log_can_be_off(serve: Any, caplog: pytest.LogCaptureFixture) -> None:
    running = await serve(access_log=False)
    with caplog.at_level(logging.INFO, "dynamo_core.access"):
        await running.http.get("/v1/models")
        await running.http.get("/live")
    assert not [record for record in caplog.records if record.name == "dynamo_core.access"]


# --- what the API says of itself ---------------------------------------------------------------------------------------------


async def test_the_schema_is_made_from_the_handlers_types(running: Any) -> None:
    schema = (await running.http.get("/openapi.json")).json()
    assert schema["openapi"].startswith("3.")
    paths = {"/v1/chat/completions", "/v1/completions", "/v1/models", "/health", "/live", "/ready", "/metrics"}
    assert paths <= set(schema["paths"])
    body = schema["paths"]["/v1/chat/completions"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    request = schema["components"]["schemas"][body["$ref"].rsplit("/", 1)[-1]]
    assert set(request["required"]) == {"model", "messages"}
    assert {"temperature", "top_k", "stream_options", "max_completion_tokens"} <= set(request["properties"])
    answers = schema["paths"]["/v1/completions"]["post"]["responses"]
    assert "Completion" in answers["200"]["content"]["application/json"]["schema"]["$ref"]
    assert "ErrorBody" in answers["400"]["content"]["application/json"]["schema"]["$ref"]


async def test_the_page_needs_no_network(running: Any) -> None:
    answer = await running.http.get("/docs")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/html")
    assert "/openapi.json" in answer.text
    assert not re.search(r"https?://", answer.text)


def test_a_store_out_of_reach_is_told_while_the_frontend_stays_healthy() -> None:
    stores = {"discovery": StoreState("etcd", "out of reach", 3.0), "event_plane": StoreState("zmq", "up")}
    manager: Any = SimpleNamespace(models=list)
    health = Health(manager, lambda: stores)
    assert msgspec.to_builtins(health.body("healthy"))["stores"] == {
        "discovery": {"provider": "etcd", "state": "out of reach", "seconds": 3.0},
        "event_plane": {"provider": "zmq", "state": "up"},
    }
    (family,) = StoreCollector("dynamo_frontend", lambda: stores).collect()
    assert family.name == "dynamo_frontend_store_out_of_reach"
    assert {(sample.labels["part"], sample.value) for sample in family.samples} == {("discovery", 1), ("event_plane", 0)}
