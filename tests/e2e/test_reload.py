"""A running server that reads its configuration again."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

GATE = """
import msgspec
from dynamo_core import hookimpl
from dynamo_core.errors import PermissionDenied
from dynamo_core.contracts import Principal


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    word: str = "sesame"


@hookimpl
def dynamo_config():
    return Config


@hookimpl
def dynamo_authenticate(request, config):
    return Principal(id="somebody") if request.headers.get("x-word") == config.word else None


@hookimpl
def dynamo_startup(process):
    print("gate opens in", process, flush=True)


@hookimpl
def dynamo_shutdown(process):
    print("gate closes in", process, flush=True)
"""


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    """An installed plugin ``gate``: a folder for PYTHONPATH with a module and its metadata."""
    (tmp_path / "gate_plugin.py").write_text(GATE)
    info = tmp_path / "gate_plugin-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: gate-plugin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[dynamo.plugins]\ngate = gate_plugin\n")
    return tmp_path


def eventually(condition: Any, within: float = 20) -> None:
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def status(server: Any, word: str = "") -> int:
    body = {"model": "tiny", "prompt": "a", "max_tokens": 1}
    return server.post("/v1/completions", body, **({"x-word": word} if word else {}))[0]


def reload(server: Any, dynamo: Any) -> Any:
    return dynamo("reload", "--http-port", str(server.port), env=server.env)


def test_a_reload_changes_plugins_and_their_tables_and_a_broken_file_changes_nothing(serve, dynamo, tiny_model, gate):
    file = gate / "dynamo.toml"
    file.write_text("")
    server = serve(
        "--engine", "mocker", "--engine-arg", "speedup_ratio=0.2", "--model", str(tiny_model), "--model-name", "tiny",
        "--frontends", "2", "--config", str(file), env={"PYTHONPATH": str(gate)},
    )  # fmt: skip
    assert status(server) == 200

    answers: list[Any] = []
    body = {"model": "tiny", "prompt": "slow", "max_tokens": 40}
    slow = threading.Thread(target=lambda: answers.append(server.post("/v1/completions", body)))
    slow.start()
    eventually(lambda: any(worker["load"]["running"] for worker in server.status()["workers"]))

    file.write_text('plugins.active = ["gate"]\n[plugins.gate]\nword = "first"\n')
    done = reload(server, dynamo)
    assert (done.returncode, done.stderr) == (0, ""), done
    assert done.stdout.startswith("reloaded frontend-0, frontend-1: plugins ")
    assert "gate" in done.stdout
    assert {status(server) for _ in range(8)} == {401}
    assert {status(server, "first") for _ in range(8)} == {200}
    slow.join()
    assert answers[0][0] == 200  # it began before the gate and ended behind it
    assert answers[0][1]["usage"]["completion_tokens"] == 40

    file.write_text('plugins.active = ["gate"]\n[plugins.gate]\nwrod = "second"\n')
    done = reload(server, dynamo)
    assert done.returncode == 2
    assert "wrod" in done.stderr
    assert "what was active stays" in done.stderr
    assert status(server, "first") == 200

    file.write_text('plugins.active = ["gate"]\n[plugins.gate]\nword = "third"\n')
    os.kill(server.process.pid, signal.SIGHUP)
    eventually(lambda: {status(server, "third") for _ in range(8)} == {200})
    assert status(server, "first") == 401
    assert server.output().count("gate opens in frontend") == 2  # once a frontend: who stays active is not started again
    assert "gate closes" not in server.output()

    frontends = server.pids("frontend")
    os.kill(frontends["frontend-0"], signal.SIGKILL)
    eventually(lambda: server.pids("frontend").get("frontend-0") not in (None, frontends["frontend-0"]))
    eventually(lambda: all(process["state"] == "ready" for process in server.status()["processes"]))
    assert {status(server, "third") for _ in range(8)} == {200}  # a frontend that starts later has it as well

    file.write_text("")
    assert reload(server, dynamo).returncode == 0
    assert {status(server) for _ in range(8)} == {200}
    eventually(lambda: server.output().count("gate closes in frontend") == 2)
    assert server.stop() == 0


def test_reload_without_a_server_says_so(dynamo):
    done = dynamo("reload")
    assert (done.returncode, done.stderr) == (2, "No server is running: start one with `dynamo serve`.\n")


def test_json_tells_the_report(serve, dynamo, tiny_model):
    server = serve("--engine", "echo", "--model", str(tiny_model))
    done = dynamo("reload", "--json", env=server.env)
    assert json.loads(done.stdout)["reloaded"] == ["frontend-0"]
    assert server.stop() == 0
