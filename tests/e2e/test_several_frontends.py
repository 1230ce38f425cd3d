"""Frontends, workers and a router started by hand, each a process of its own, on a discovery folder."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

DYNAMO = str(Path(sys.executable).with_name("dynamo"))
WORKERS = 4
BLOCK = 16


class Hand:
    """Processes of one namespace. Ended in the reverse order of their start."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.folder = folder
        self.model = model
        self.env = {**os.environ, "DYN_FILE_KV": str(folder / "kv"), "XDG_RUNTIME_DIR": str(folder), "NO_COLOR": "1"}
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self, *args: str) -> tuple[subprocess.Popen[bytes], Path]:
        log = self.folder / f"{len(self.processes)}.log"
        with log.open("wb") as out:
            process = subprocess.Popen([DYNAMO, *args], stdout=out, stderr=out, env=self.env, cwd=self.folder)
        self.processes.append(process)
        return process, log

    def workers(self, count: int) -> None:
        args = ("worker", "--engine", "mocker", "--model", str(self.model), "--model-name", "m")
        slow = ("--engine-arg", "decode_speedup_ratio=0.02")  # a stream runs for as long as its client likes
        logs = [self.start(*args, *slow)[1] for _ in range(count)]
        for log in logs:
            wait(lambda log=log: "ready" in log.read_text(), log)

    def frontend(self, *args: str) -> Frontend:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        process, log = self.start("frontend", "--http-port", str(port), "--no-access-log", *args)
        frontend = Frontend(process, port)
        wait(frontend.ready, log)
        return frontend

    def stop(self, *processes: subprocess.Popen[bytes]) -> None:
        chosen = processes or tuple(reversed(self.processes))
        for process in chosen:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in chosen:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


class Frontend:
    def __init__(self, process: subprocess.Popen[bytes], port: int) -> None:
        self.process = process
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self.open: list[socket.socket] = []

    def ready(self) -> bool:
        with contextlib.suppress(OSError, ValueError), urllib.request.urlopen(f"{self.url}/health", timeout=5) as answer:
            models = json.load(answer)["models"]
            return len(models["m"]["instances"]) == WORKERS if models else False
        return False

    def post(self, body: dict[str, Any], **headers: str) -> tuple[Any, Any]:
        data = json.dumps({"model": "m", **body}).encode()
        headers = {"content-type": "application/json", **{name.replace("_", "-"): value for name, value in headers.items()}}
        request = urllib.request.Request(f"{self.url}/v1/completions", data=data, headers=headers)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer), answer.headers

    def query(self, prompt: list[int], **headers: str) -> Any:
        return self.post({"prompt": prompt, "nvext": {"annotations": ["query_instance_id"]}}, **headers)[0]

    def stream(self, prompt: list[int], **headers: str) -> str:
        """Begins one that goes on; returns when its first token is here, with the worker's id."""
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=30)
        self.open.append(connection)
        body = json.dumps({"model": "m", "prompt": prompt, "max_tokens": 200, "ignore_eos": True, "stream": True}).encode()
        lines = ["POST /v1/completions HTTP/1.1", "Host: x", "Content-Type: application/json", f"Content-Length: {len(body)}"]
        lines += ["x-dynamo-debug: route", *(f"{name}: {value}" for name, value in headers.items())]
        connection.sendall("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
        received = b""
        while b"data: " not in received:
            received += connection.recv(65536)
        found = re.search(rb'x-dynamo-route: \[\{"worker":(\d+)', received)
        assert found is not None, received
        return found[1].decode()

    def hang_up(self) -> None:
        for connection in self.open:
            connection.close()
        self.open.clear()

    def load(self) -> list[int]:
        """Requests on each worker, as the router believes that this frontend asks."""
        with urllib.request.urlopen(f"{self.url}/health", timeout=5) as answer:
            workers = [instance["instance_id"] for instance in json.load(answer)["models"]["m"]["instances"]]
        asked = [self.query([1] * 8, x_dynamo_worker_instance_id=str(worker)) for worker in workers]
        return sorted(answer["explain"]["best"][0]["requests"] for answer in asked)


def wait(condition: Callable[[], Any], log: Path | None = None) -> None:
    deadline = time.monotonic() + 40
    while not condition():
        assert time.monotonic() < deadline, log.read_text() if log is not None else "it never came about"
        time.sleep(0.05)  # other processes': there is no event to wait for


def prompt(number: int, blocks: int = 4) -> list[int]:
    return [3 + (number * 7919 + place * 31) % 200 for place in range(blocks * BLOCK + 1)]


@pytest.fixture(scope="module")
def hand(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hand]:
    hand = Hand(tmp_path_factory.mktemp("h"), tiny_model)
    try:
        hand.workers(WORKERS)
        yield hand
    finally:
        hand.stop()


@pytest.fixture
def start(hand: Hand) -> Iterator[Callable[..., Frontend]]:
    started: list[Frontend] = []

    def frontend(*args: str) -> Frontend:
        made = hand.frontend(*args)
        started.append(made)
        return made

    yield frontend
    for made in started:
        made.hang_up()
    hand.stop(*(made.process for made in started))


def test_skewed_load_is_spread_as_one_frontend_would_and_the_dead_are_forgotten(start: Any) -> None:
    one, two = start("--router", "kv"), start("--router", "kv")
    chosen = Counter((one if number % 4 else two).stream(prompt(number)) for number in range(16))
    assert sorted(chosen.values()) == [4, 4, 4, 4]
    wait(lambda: one.load() == two.load() == [4, 4, 4, 4])
    two.hang_up()
    wait(lambda: sum(one.load()) == sum(two.load()) == 12)
    one.process.kill()
    wait(lambda: not sum(two.load()))


def test_a_late_frontend_knows_the_caches_of_before(start: Any) -> None:
    one = start("--router", "kv")
    answer, headers = one.post({"prompt": prompt(50, blocks=8), "max_tokens": 1}, x_dynamo_debug="route")
    assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    (route,) = json.loads(headers["x-dynamo-route"])
    late = start("--router", "kv")
    wait(lambda: late.query(prompt(50, blocks=8))["overlap_blocks"] == 8)
    assert late.query(prompt(50, blocks=8))["worker_instance_id"] == route["worker"]


@pytest.mark.parametrize("mode", ["hard", "soft"])
def test_sessions_hold_across_frontends(start: Any, mode: str) -> None:
    flags = ("--router", "round-robin", "--router-session-affinity-ttl-secs", "60", "--router-session-affinity-mode", mode)
    one, two = start(*flags), start(*flags)
    first = one.stream(prompt(60), **{"x-session-id": mode})
    wait(lambda: two.query(prompt(61), x_session_id=mode)["worker_instance_id"] == int(first))
    late = start(*flags)
    wait(lambda: late.query(prompt(61), x_session_id=mode)["worker_instance_id"] == int(first))
    others = {one.stream(prompt(70 + number)) for number in range(WORKERS)}
    assert len(others) == WORKERS, "requests without a session go round"
    assert {frontend.stream(prompt(80), **{"x-session-id": mode}) for frontend in (one, late)} == {first}


def test_a_router_of_its_own_decides_for_all(hand: Hand, start: Any) -> None:
    process, log = hand.start("router", "--endpoint", "dynamo.backend.generate", "--router-temperature", "0")
    wait(lambda: "ready: dyn://dynamo.router" in log.read_text(), log)
    one, two = start("--router", "remote"), start("--router", "remote")
    wait(lambda: one.query(prompt(1))["explain"] != {"router": "least loaded"})
    chosen = Counter((one if number % 4 else two).stream(prompt(100 + number)) for number in range(16))
    assert sorted(chosen.values()) == [4, 4, 4, 4]
    assert two.load() == [4, 4, 4, 4]
    explained = subprocess.run(
        [DYNAMO, "router", "explain", "--url", one.url, "once upon a time"],
        env=hand.env, capture_output=True, text=True, timeout=30, check=True,
    ).stdout  # fmt: skip
    assert re.search(r"^m: \d+ tokens go to worker [0-9a-f]+ \(router remote", explained)
    assert "COST MS" in explained
    two.process.kill()
    wait(lambda: sum(one.load()) == 12)
    hand.stop(process)
    answer, headers = one.post({"prompt": prompt(1), "max_tokens": 1}, x_dynamo_debug="route")
    assert answer["usage"]["completion_tokens"] == 1
    assert json.loads(headers["x-dynamo-route"])[0]["explain"] == {"router": "least loaded"}
