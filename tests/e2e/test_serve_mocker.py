"""The main job with the mocker: processes, clients, plugins and failures, everything real but the arithmetic."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import openai
import pytest

ROOT = Path(__file__).parents[2]
LONG_PROMPT = " ".join(f"word{i % 17}" for i in range(600))


@pytest.fixture(scope="module")
def server(serve: Any, tiny_model: Path) -> Any:
    return serve(
        "--plugin", "kv-router", "--engine", "mocker", "--model", str(tiny_model), "--model-name", "tiny", "--workers", "2",
        "--engine-arg", "speedup_ratio=20", "--engine-arg", "block_size=16",
    )  # fmt: skip


def chat(server: Any, text: str, **options: Any) -> Any:
    messages = [{"role": "user", "content": text}]
    return server.openai().chat.completions.create(model="tiny", messages=messages, **{"max_tokens": 8, **options})


def eventually(condition: Any, within: float = 20) -> None:
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.usefixtures("large_pages")
def test_a_frontends_memory_moves_to_large_pages(server: Any) -> None:
    (pid,) = server.pids("frontend").values()

    def large() -> int:
        return int(re.search(r"AnonHugePages: +(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text()).group(1))

    eventually(lambda: large() > 16 << 10)  # the table of words alone has 2 MB


class TestAnswers:
    def test_unary_chat_has_text_and_usage(self, server):
        answer = chat(server, "hello there")
        assert answer.choices[0].message.content
        assert answer.choices[0].finish_reason == "length"
        assert answer.usage.completion_tokens == 8
        assert answer.usage.total_tokens == answer.usage.prompt_tokens + 8

    def test_a_stream_says_the_same_as_the_unary_answer(self, server):
        whole = chat(server, "tell me more", temperature=0).choices[0].message.content
        chunks = list(chat(server, "tell me more", temperature=0, stream=True, stream_options={"include_usage": True}))
        assert chunks[0].choices[0].delta.role == "assistant"
        assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == whole
        assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "length"
        assert chunks[-1].choices == []
        assert chunks[-1].usage.completion_tokens == 8

    def test_n_gives_n_choices(self, server):
        answer = chat(server, "three of them", n=3, seed=1)
        assert sorted(c.index for c in answer.choices) == [0, 1, 2]
        assert answer.usage.completion_tokens == 24

    def test_a_stop_string_ends_the_text_before_it(self, server):
        text = chat(server, "cut me", max_tokens=24).choices[0].message.content
        stop = text[len(text) // 2 :][:3]
        cut = chat(server, "cut me", max_tokens=24, stop=stop).choices[0]
        assert cut.message.content == text[: text.index(stop)]
        assert cut.finish_reason == "stop"

    def test_logprobs_name_every_token(self, server):
        answer = chat(server, "how sure", logprobs=True, top_logprobs=2)
        content = answer.choices[0].logprobs.content
        assert len(content) == 8
        assert all(len(entry.top_logprobs) == 2 for entry in content)

    @pytest.mark.parametrize("prompt", ["one", ["one", "two"], [5, 6, 7], [[5, 6], [7, 8]]])
    def test_completions_take_text_lists_and_token_ids(self, server, prompt):
        answer = server.openai().completions.create(model="tiny", prompt=prompt, max_tokens=3)
        several = isinstance(prompt, list) and not isinstance(prompt[0], int)
        assert len(answer.choices) == (2 if several else 1)
        assert answer.usage.completion_tokens == 3 * len(answer.choices)

    def test_models_are_listed_and_found(self, server):
        client = server.openai()
        assert [model.id for model in client.models.list()] == ["tiny"]
        assert client.models.retrieve("tiny").id == "tiny"

    @pytest.mark.parametrize("path", ["/health", "/live", "/ready", "/metrics", "/openapi.json", "/docs"])
    def test_every_page_for_probes_and_people_answers(self, server, path):
        assert server.get(path)[0] == 200

    def test_the_api_page_names_no_other_host(self, server):
        page = server.get("/docs")[1]
        assert "https://" not in page
        assert "/openapi.json" in page

    def test_every_response_carries_a_request_id(self, server):
        headers = server.post("/v1/completions", {"model": "tiny", "prompt": "a", "max_tokens": 1})[2]
        assert headers["x-request-id"]
        echoed = server.post("/v1/completions", {"model": "nope", "prompt": "a"}, **{"x-request-id": "abc-1"})[2]
        assert echoed["x-request-id"] == "abc-1"


class TestRouting:
    def test_a_repeated_long_prompt_goes_where_it_is_cached(self, server):
        first = chat(server, LONG_PROMPT)
        eventually(lambda: "tiny" in json.dumps(server.status()))
        again = chat(server, LONG_PROMPT)
        assert first.usage.prompt_tokens_details.cached_tokens < 64
        assert again.usage.prompt_tokens_details.cached_tokens > 0.9 * again.usage.prompt_tokens

    def test_round_robin_sends_it_elsewhere(self, serve, tiny_model):
        other = serve(
            "--engine", "mocker", "--model", str(tiny_model), "--model-name", "tiny", "--workers", "2", "--router", "round-robin",
            "--engine-arg", "speedup_ratio=0", "--no-plugin", "kv-router",
        )  # fmt: skip
        cached = [chat(other, LONG_PROMPT).usage.prompt_tokens_details.cached_tokens for _ in range(2)]
        assert cached[1] < 64
        assert other.stop() == 0


class TestBadInput:
    @pytest.mark.parametrize(
        ("change", "status", "param", "code"),
        [
            ({"model": "nope"}, 404, "model", "model_not_found"),
            ({"max_tokens": -1}, 400, "max_tokens", None),
            ({"max_tokens": "many"}, 400, "max_tokens", None),
            ({"messages": "hello"}, 400, "messages", None),
            ({"messages": []}, 400, "messages", None),
            ({"temperature": 9}, 400, "temperature", None),
            ({"n": 0}, 400, "n", None),
            ({"messages": [{"role": "user", "content": "word " * 20000}]}, 400, "messages", "context_length_exceeded"),
        ],
    )
    def test_a_mistake_is_a_4xx_that_names_its_parameter(self, server, change, status, param, code):
        body = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4, **change}
        answer = server.post("/v1/chat/completions", body)
        assert answer[0] == status
        error = answer[1]["error"]
        assert error["param"] == param
        assert error["message"]
        assert code is None or error["code"] == code

    def test_what_is_not_json_is_a_400(self, server):
        status, body, _ = server.post("/v1/chat/completions", b"{not json")
        assert status == 400
        assert body["error"]["type"] == "invalid_request_error"

    def test_a_body_over_the_limit_is_a_413(self, serve, tiny_model):
        small = serve(
            "--engine", "echo", "--model", str(tiny_model), "--model-name", "tiny", "--http-body-limit-mb", "0.01"
        )  # fmt: skip
        status, body, _ = small.post("/v1/completions", {"model": "tiny", "prompt": "x" * 50_000})
        assert (status, body["error"]["code"]) == (413, "request_too_large")
        assert small.post("/v1/completions", {"model": "tiny", "prompt": "x", "max_tokens": 1})[0] == 200

    def test_an_unknown_field_is_ignored(self, server):
        body = {"model": "tiny", "prompt": "a", "max_tokens": 1, "favourite_colour": "green"}
        assert server.post("/v1/completions", body)[0] == 200

    def test_an_unknown_route_has_the_envelope(self, server):
        status, body = server.get("/v2/nothing")
        assert status == 404
        assert "message" in body["error"]

    def test_the_server_still_serves_after_all_of_it(self, server):
        assert chat(server, "still there?").choices[0].message.content


class TestFailures:
    def test_a_killed_worker_loses_no_stream_and_comes_back(self, serve, tiny_model):
        server = serve(
            "--plugin", "kv-router", "--engine", "mocker", "--model", str(tiny_model), "--model-name", "tiny", "--workers", "2",
            "--engine-arg", "speedup_ratio=1",
        )  # fmt: skip
        wanted = chat(server, "survive", max_tokens=200).choices[0].message.content
        workers = server.pids("worker")
        streams = [
            iter(chat(server, "survive", max_tokens=200, stream=True, stream_options={"include_usage": True})) for _ in range(4)
        ]
        texts = ["".join(next(s).choices[0].delta.content or "" for _ in range(10)) for s in streams]
        os.kill(next(iter(workers.values())), signal.SIGKILL)
        for begun, stream in zip(texts, streams, strict=True):
            rest = list(stream)
            assert begun + "".join(c.choices[0].delta.content or "" for c in rest if c.choices) == wanted
            assert rest[-1].usage.completion_tokens == 200
            assert rest[-1].usage.prompt_tokens < 30
        eventually(lambda: len(server.pids("worker")) == 2 and set(server.pids("worker").values()) != set(workers.values()))
        assert chat(server, "and on").choices[0].message.content
        assert server.stop() == 0

    def test_a_client_that_leaves_frees_the_engine(self, server):
        connection = http.client.HTTPConnection("127.0.0.1", server.port)
        body = {"model": "tiny", "prompt": "leave", "max_tokens": 3000, "stream": True}
        connection.request("POST", "/v1/completions", json.dumps(body), {"content-type": "application/json"})
        connection.getresponse().read(64)
        connection.sock.shutdown(socket.SHUT_RDWR)
        connection.close()
        eventually(lambda: all(worker["load"]["running"] == 0 for worker in server.status()["workers"]), within=5)

    def test_nothing_outlives_a_killed_supervisor(self, serve, tiny_model):
        server = serve("--engine", "echo", "--model", str(tiny_model), "--workers", "2")
        pids = [*server.pids("worker").values(), *server.pids("frontend").values()]
        server.process.kill()
        server.process.wait()
        eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), within=10)


class TestSleep:
    def test_a_worker_sleeps_and_wakes_while_the_other_serves(self, serve, dynamo, tiny_model):
        server = serve("--engine", "mocker", "--model", str(tiny_model), "--model-name", "tiny", "--workers", "2")

        def states():
            return {p["name"]: p["state"] for p in server.status()["processes"] if p["kind"] == "worker"}

        def routable():
            return len(server.get("/health")[1]["models"]["tiny"]["instances"])

        run = dynamo("sleep", "worker-0", "--http-port", str(server.port), env=server.env)
        assert (run.returncode, run.stdout) == (0, "worker-0 is asleep\n"), run.stderr
        assert states() == {"worker-0": "asleep", "worker-1": "ready"}
        eventually(lambda: routable() == 1)
        assert chat(server, "still there?").choices[0].message.content
        run = dynamo("wake", "--http-port", str(server.port), env=server.env)
        assert (run.returncode, run.stdout) == (0, "worker-0 is awake\nworker-1 is awake\n"), run.stderr
        eventually(lambda: routable() == 2)
        assert states() == {"worker-0": "ready", "worker-1": "ready"}
        run = dynamo("sleep", "worker-7", "--http-port", str(server.port), env=server.env)
        assert run.returncode == 2
        assert "There is no worker worker-7: there are worker-0, worker-1." in run.stderr
        assert server.stop() == 0


class TestPlugins:
    def test_an_installed_package_changes_behaviour_when_it_is_named(self, serve, tiny_model, tmp_path):
        target = tmp_path / "site"
        install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--target", str(target)]
        subprocess.run([*install, str(ROOT / "examples" / "header_gate")], check=True, capture_output=True)
        server = serve(
            "--plugin", "header-gate", "--engine", "echo", "--model", str(tiny_model), "--model-name", "tiny",
            env={"PYTHONPATH": str(target)},
        )  # fmt: skip
        body = {"model": "tiny", "prompt": "a", "max_tokens": 1}
        refused = server.post("/v1/completions", body)
        assert refused[0] == 403
        assert "x-team" in refused[1]["error"]["message"]
        assert server.post("/v1/completions", body, **{"x-team": "search"})[0] == 200

    def test_several_frontends_share_the_port(self, serve, tiny_model):
        server = serve("--engine", "echo", "--model", str(tiny_model), "--model-name", "tiny", "--frontends", "2")
        assert len(server.pids("frontend")) == 2
        for _ in range(8):
            assert server.post("/v1/completions", {"model": "tiny", "prompt": "a", "max_tokens": 1})[0] == 200
        assert server.stop() == 0


class TestStart:
    @pytest.mark.parametrize(
        ("args", "says"),
        [
            (["--engine", "mockr", "--model", "MODEL"], "mocker"),
            (["--engine", "mocker", "--plugin", "kv-ruter", "--model", "MODEL"], "kv-router"),
            (["--engine", "mocker", "--model", "/no/such/folder"], "/no/such/folder"),
            (["--engine", "mocker", "--model", "EMPTY"], "tokenizer.json"),
            (["--engine", "mocker", "--model", "MODEL", "--engine-arg", "speedup_ration=1"], "speedup_ratio"),
        ],
    )
    def test_a_mistake_is_one_sentence_and_exit_code_2(self, dynamo, tiny_model, tmp_path, args, says):
        known = {"MODEL": str(tiny_model), "EMPTY": str(tmp_path)}
        run = dynamo("serve", *[known.get(arg, arg) for arg in args])
        assert run.returncode == 2, run.stderr
        assert says in run.stderr
        assert "Traceback" not in run.stdout + run.stderr

    def test_a_taken_port_is_named(self, dynamo, tiny_model):
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = str(taken.getsockname()[1])
            run = dynamo("serve", "--engine", "mocker", "--model", str(tiny_model), "--http-port", port)
        assert run.returncode == 2
        assert port in run.stderr

    def test_a_misspelt_key_of_the_file_is_named(self, dynamo, tmp_path):
        (tmp_path / "dynamo.toml").write_text("htp_port = 9000\n")
        run = dynamo("config", "show", cwd=tmp_path)
        assert run.returncode == 2
        assert "htp_port" in run.stderr
        assert "http_port" in run.stderr


def test_openai_raises_its_own_not_found_error(server):
    with pytest.raises(openai.NotFoundError):
        server.openai().models.retrieve("nope")
