"""A whole `dynamo serve` as a subprocess, and clients for it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI

DYNAMO = str(Path(sys.executable).with_name("dynamo"))

_SHOWN = 80
"""Lines of a server's log where a test fails."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Serve:
    """One running `dynamo serve`; `stop()` asks it to end and returns its exit code."""

    def __init__(self, *args: str, folder: Path, env: dict[str, str] | None = None, ready_within: float = 60) -> None:
        self.client: OpenAI | None = None
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = folder / f"serve-{self.port}.log"
        self.env = {**os.environ, "XDG_RUNTIME_DIR": str(folder), "NO_COLOR": "1", **(env or {})}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [DYNAMO, "serve", "--http-port", str(self.port), *args], stdout=log, stderr=log, env=self.env, cwd=folder
            )
        deadline = time.monotonic() + ready_within
        while not self.ready():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise AssertionError(f"not ready, exit code {self.process.returncode}:\n{self.output()}")
            time.sleep(0.1)  # polled from outside: there is no event to wait for

    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def ready(self) -> bool:
        """`/ready` is 200 with the first worker; serve says "ready" once all of them are there."""
        with contextlib.suppress(OSError):
            return "\nready: http" in self.output() and self.get("/ready")[0] == 200
        return False

    def request(self, path: str, body: bytes | None, headers: dict[str, str]) -> tuple[int, Any, dict[str, str]]:
        request = urllib.request.Request(self.url + path, data=body, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                status, raw, found = answer.status, answer.read(), dict(answer.headers)
        except urllib.error.HTTPError as error:
            with error:
                status, raw, found = error.code, error.read(), dict(error.headers)
        try:
            return status, json.loads(raw), found
        except ValueError:
            return status, raw.decode(), found

    def get(self, path: str) -> tuple[int, Any]:
        return self.request(path, None, {})[:2]

    def post(self, path: str, body: Any, **headers: str) -> tuple[int, Any, dict[str, str]]:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.request(path, raw, {"content-type": "application/json", **headers})

    def openai(self) -> OpenAI:
        if self.client is None:
            self.client = OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=60)
        return self.client

    def status(self) -> Any:
        run = subprocess.run(
            [DYNAMO, "status", "--json", "--http-port", str(self.port)],
            env=self.env,
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        )
        return json.loads(run.stdout)

    def pids(self, kind: str) -> dict[str, int]:
        return {process["name"]: process["pid"] for process in self.status()["processes"] if process["kind"] == kind}

    def stop(self) -> int:
        if self.client is not None:
            self.client.close()
            self.client = None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(45)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        return self.process.returncode


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A test that fails shows what its servers said last."""
    report = yield
    if report.failed:
        for name, server in getattr(item, "funcargs", {}).items():
            if isinstance(server, Serve):
                report.sections.append((f"last lines of {name}", "\n".join(server.output().splitlines()[-_SHOWN:])))
    return report


@pytest.fixture(scope="session")
def serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Start servers with `serve(*args)`; all are stopped at the end."""
    servers: list[Serve] = []

    def start(*args: str, **options: Any) -> Serve:
        server = Serve(*args, folder=tmp_path_factory.mktemp("s"), **options)
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.stop()


@pytest.fixture(scope="session")
def dynamo(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Run the `dynamo` command to its end."""

    def run(*args: str, env: dict[str, str] | None = None, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        folder = cwd or tmp_path_factory.mktemp("cli")
        return subprocess.run(
            [DYNAMO, *args],
            env={**os.environ, "XDG_RUNTIME_DIR": str(folder), "NO_COLOR": "1", **(env or {})},
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return run
