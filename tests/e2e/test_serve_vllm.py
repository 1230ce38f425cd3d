"""The main job with a real vLLM on the CPU: two workers, one start for all tests."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def server(serve: Any, tiny_model: Path) -> Any:
    return serve(
        "--plugin", "kv-router", "--engine", "vllm", "--model", str(tiny_model), "--model-name", "tiny", "--workers", "2",
        "--engine-arg", "max_model_len=2048", "--engine-arg", "dtype=float32",  # in bfloat16 two tokens are at times equally good
        ready_within=300,
    )  # fmt: skip


def completion(server: Any, prompt: Any, **options: Any) -> Any:
    return server.openai().completions.create(model="tiny", prompt=prompt, **{"max_tokens": 8, "temperature": 0, **options})


def prompt_of(tokens: int, salt: int) -> list[int]:
    return [100 + (i * 7 + salt * 31) % 150 for i in range(tokens)]


def test_real_text_is_generated_the_same_way_twice_and_varies_with_the_prompt(server):
    texts = [completion(server, p, max_tokens=24).choices[0].text for p in ("alpha beta", "alpha beta", "gamma delta")]
    assert texts[0] == texts[1] != texts[2]
    assert len(set(texts[0])) > 3


def test_a_stream_equals_the_unary_answer_and_reports_usage(server):
    whole = completion(server, "stream me", max_tokens=32).choices[0].text
    chunks = list(completion(server, "stream me", max_tokens=32, stream=True, stream_options={"include_usage": True}))
    assert "".join(c.choices[0].text for c in chunks if c.choices) == whole
    assert chunks[-1].usage.completion_tokens == 32


def test_chat_with_n_stop_and_logprobs(server):
    messages = [{"role": "user", "content": "hello"}]
    ask = server.openai().chat.completions.create
    whole = ask(model="tiny", messages=messages, max_tokens=24, temperature=0, logprobs=True, top_logprobs=3)
    text = whole.choices[0].message.content
    content = whole.choices[0].logprobs.content
    assert len(content) == whole.usage.completion_tokens
    assert all(entry.logprob == pytest.approx(entry.top_logprobs[0].logprob) for entry in content), "greedy takes the best"
    several = ask(model="tiny", messages=messages, max_tokens=4, n=3, temperature=1, seed=7)
    assert len({c.message.content for c in several.choices}) > 1
    stop = text[8:11]
    cut = ask(model="tiny", messages=messages, max_tokens=24, temperature=0, stop=[stop])
    assert cut.choices[0].message.content == text[: text.index(stop)]


def test_the_second_request_goes_to_the_worker_that_has_the_prompt(server):
    for salt in range(3):
        prompt = prompt_of(500, salt)
        first = completion(server, prompt, max_tokens=1)
        deadline = time.monotonic() + 5
        while True:  # events travel beside the answer: give them a moment
            again = completion(server, prompt, max_tokens=1)
            if again.usage.prompt_tokens_details.cached_tokens > 450 or time.monotonic() > deadline:
                break
        assert first.usage.prompt_tokens_details.cached_tokens < 50
        assert again.usage.prompt_tokens_details.cached_tokens > 450


def test_of_a_cached_prompt_almost_nothing_is_computed(server):
    """What makes it answer sooner; how much sooner is `python -m benchmarks.multi_turn`'s to say."""

    def computed(prompt: list[int]) -> float:
        def total() -> float:
            name = "vllm:request_prefill_kv_computed_tokens_sum"
            return sum(float(line.split()[-1]) for line in server.get("/metrics")[1].splitlines() if line.startswith(name))

        before = total()
        completion(server, prompt, max_tokens=1)
        return total() - before

    prompt = prompt_of(1500, 10)
    assert computed(prompt) == 1500
    assert 0 < computed(prompt) < 50


def test_the_engines_own_metrics_are_served_once(server):
    text = server.get("/metrics")[1]
    series = [line.split(" ")[0] for line in text.splitlines() if line and not line.startswith("#")]
    assert len(series) == len(set(series))


def test_a_prompt_longer_than_the_context_is_a_400(server):
    body = {"model": "tiny", "prompt": prompt_of(2100, 0), "max_tokens": 4}
    status, answer, _ = server.post("/v1/completions", body)
    assert (status, answer["error"]["code"]) == (400, "context_length_exceeded")


def test_streams_of_a_killed_worker_go_on_with_the_same_text_on_the_other_until_it_is_back(server):
    """The first stream that has some tokens takes its worker down, long before it is done: others may not even have begun."""

    def migrated() -> float:
        name = "dynamo_frontend_model_migration_total"
        return sum(float(line.split()[-1]) for line in server.get("/metrics")[1].splitlines() if line.startswith(name))

    before = {worker["id"]: worker["pid"] for worker in server.status()["workers"]}
    prompts = [prompt_of(40, 60 + salt) for salt in range(4)]
    unharmed = [completion(server, prompt, max_tokens=1500).choices[0].text for prompt in prompts]
    assert len(set(unharmed)) == 4
    moved = migrated()
    victims: list[int] = []
    first = threading.Lock()

    def stream(prompt: list[int]) -> tuple[str, int]:
        answer = server.openai().completions.with_raw_response.create(
            model="tiny", prompt=prompt, temperature=0, max_tokens=1500, stream=True, stream_options={"include_usage": True},
            extra_headers={"x-dynamo-debug": "route"},
        )  # fmt: skip
        leg = json.loads(answer.headers["x-dynamo-route"])[-1]
        texts = []
        usage = None
        for number, chunk in enumerate(answer.parse()):
            if number == 20 and first.acquire(blocking=False):
                victims.append(leg["worker"])
                os.kill(before[leg["worker"]], signal.SIGKILL)
            texts += [choice.text for choice in chunk.choices]
            usage = chunk.usage or usage
        assert usage is not None
        return "".join(texts), usage.completion_tokens

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(stream, prompts, timeout=120))
    assert answers == [(text, 1500) for text in unharmed]
    assert len(victims) == 1
    assert migrated() > moved
    for salt in range(4):
        assert completion(server, prompt_of(40, 50 + salt), max_tokens=4).usage.completion_tokens == 4
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        if len(server.status()["workers"]) == 2 and not {*victims} & {worker["id"] for worker in server.status()["workers"]}:
            break
        time.sleep(0.5)  # an engine takes its time to load
    assert len(server.status()["workers"]) == 2
