"""What a client may say to the router, through real frontends, workers and ranks."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import httpx
import pytest

PROMPT = " ".join(f"word{i % 23}" for i in range(300))


@pytest.fixture(scope="module")
def server(serve: Any, tiny_model: Path) -> Any:
    return serve(
        "--router", "kv", "--engine", "mocker", "--model", str(tiny_model), "--model-name", "tiny", "--workers", "1",
        "--frontends", "2", "--taint", "blue", "--engine-arg", "speedup_ratio=20", "--engine-arg", "block_size=16",
        "--engine-arg", "data_parallel_size=2",
    )  # fmt: skip


@pytest.fixture
def ask(server: Any) -> Any:
    def ask(prompt: str = "hello", *, headers: dict[str, str] | None = None, **fields: Any) -> httpx.Response:
        body = {"model": "tiny", "prompt": prompt, "max_tokens": 2, **fields}
        return httpx.post(f"{server.url}/v1/completions", json=body, headers=headers, timeout=30, trust_env=False)

    return ask


def cached(answer: httpx.Response) -> int:
    assert answer.status_code == 200, answer.text
    return int(answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"])


def eventually(condition: Any, within: float = 20) -> None:
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_tenants_never_share_and_each_finds_its_own(ask: Any) -> None:
    hits = [cached(ask(PROMPT, headers={"x-tenant-id": tenant, "x-dynamo-dp-rank": "0"})) for tenant in ("a", "b", "a", "b")]
    assert hits[:2] == [0, 0]
    assert min(hits[2:]) > 100


def test_ranks_have_their_own_caches_and_the_router_finds_them(ask: Any) -> None:
    prompt = f"another {PROMPT}"
    assert [cached(ask(prompt, headers={"x-dynamo-dp-rank": rank})) > 100 for rank in ("1", "0", "1", "0")] == [
        False, False, True, True,
    ]  # fmt: skip
    third = f"third {PROMPT}"
    cached(ask(third, nvext={"dp_rank": 1}))
    eventually(lambda: cached(ask(third)) > 100)
    refused = ask(headers={"x-dynamo-dp-rank": "2"})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "dp_rank")


def test_required_taints_are_had_or_missed(ask: Any) -> None:
    assert ask(nvext={"routing_constraints": {"required_taints": ["blue"]}}).status_code == 200
    refused = ask(nvext={"routing_constraints": {"required_taints": ["red"]}})
    assert refused.status_code == 503
    assert "red" in refused.json()["error"]["message"]


def test_busy_thresholds_set_at_one_frontend_hold_for_all(server: Any, ask: Any) -> None:
    def change(value: int | None) -> None:
        body = {"model": "tiny", "active_prefill_tokens_threshold": value}
        answer = httpx.post(f"{server.url}/busy_threshold", json=body, timeout=30, trust_env=False)
        assert answer.json()["active_prefill_tokens_threshold"] == value

    def shown() -> set[int | None]:
        """By connections enough to reach both frontends."""
        answers = [httpx.get(f"{server.url}/busy_threshold", timeout=30, trust_env=False).json() for _ in range(8)]
        return {answer["thresholds"][0]["active_prefill_tokens_threshold"] for answer in answers}

    change(0)
    eventually(lambda: shown() == {0})
    refused = ask()
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "overloaded")
    assert refused.headers["retry-after"] == "1"
    change(None)
    eventually(lambda: shown() == {None})
    assert ask().status_code == 200
