"""The servers that are compared, each started the way its own documentation does, its logs at the quietest level it documents.

What a server needs beside itself (workers, back ends) is a role of its own in :class:`Running`, so that costs can be told apart.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, Protocol

import msgspec

from benchmarks.peers.processes import ServerProcess
from benchmarks.peers.prompts import MODEL

__all__ = ["BACKENDS", "OURS", "PROXIES", "SERVERS", "Engine", "NotStarted", "Peer", "Running", "Setting", "answers"]

OURS = "dynamo-core"
_START_SECONDS = 120.0
_AT_ONCE = 1e6
"""No delay to speak of, of Dynamo 1.6.1's mocker. Its ``--speedup-ratio 0``, which is to mean that, gives it the delays of 1."""


class Engine(msgspec.Struct, frozen=True, kw_only=True):
    """The simulated engine: the same program of two workers, or what comes nearest to it, behind every server."""

    speedup: float = 0.0
    """Prefill's; 0: no delay at all."""
    decode_speedup: float = 1.0
    """On top, of decoding: 5.74 ms ÷ speedup ÷ this is the time between two tokens."""
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 8192
    blocks: int = 16384


class Setting(msgspec.Struct, frozen=True, kw_only=True):
    """What a server is started with."""

    model: Path
    engine: Engine
    peers: Path
    """The peers' virtual environment."""
    folder: Path
    """For logs and state."""
    backends: tuple[Running, ...] = ()
    """For proxies."""


class Running(NamedTuple):
    name: str
    port: int
    roles: Mapping[str, tuple[int, ...]]
    """Role → process ids; the trees below them count too."""
    start_seconds: float
    """From the start of the first process to the first answered completion."""


class NotStarted(Exception):
    """One line that says why."""


class Peer(Protocol):
    name: str
    backends: str
    """Which of :data:`BACKENDS` a proxy stands before; empty of a server that has its own workers."""

    def start(self, setting: Setting) -> contextlib.AbstractContextManager[Running]:
        """Raises :class:`NotStarted`."""
        ...


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def answers(port: int, within: float = 30.0) -> bool:
    """Whether a completion of one token succeeds."""
    body = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1})
    link = http.client.HTTPConnection("127.0.0.1", port, timeout=within)
    try:
        link.request("POST", "/v1/chat/completions", body, {"content-type": "application/json"})
        return link.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        link.close()


def wait_until_ready(name: str, port: int, processes: list[ServerProcess], begun: float) -> float:
    """Seconds since ``begun``. Asks every 20 ms, so that a busy wait does not slow the start."""
    while not answers(port):
        for process in processes:
            if process.ended:
                raise NotStarted(f"{name} ended while starting: {process.why()}")
        if time.perf_counter() - begun > _START_SECONDS:
            raise NotStarted(f"{name} answered nothing within {_START_SECONDS:.0f} s: {processes[0].why()}")
        time.sleep(0.02)
    return time.perf_counter() - begun


@contextlib.contextmanager
def stopping(processes: list[ServerProcess]) -> Iterator[list[ServerProcess]]:
    try:
        yield processes
    finally:
        for process in processes:
            process.stop()


class Ours:
    """``dynamo serve``: frontend and workers in processes of their own; access log, metrics and request ids are on by default."""

    backends = ""

    def __init__(self, name: str = OURS, *, workers: int = 2, frontends: int = 1, role: str = "") -> None:
        self.name = name
        self._workers = workers
        self._frontends = frontends
        self._role = role
        """All processes under this role, as a proxy's back end."""

    @contextlib.contextmanager
    def start(self, setting: Setting) -> Iterator[Running]:
        engine, port = setting.engine, free_port()
        arguments = {
            "speedup_ratio": engine.speedup, "decode_speedup_ratio": engine.decode_speedup, "max_num_seqs": engine.max_num_seqs,
            "max_num_batched_tokens": engine.max_num_batched_tokens, "num_blocks": engine.blocks,
        }  # fmt: skip
        command = [
            _dynamo(), "serve", "--plugin", "kv-router", "--engine", "mocker",
            *(part for key, value in arguments.items() for part in ("--engine-arg", f"{key}={value}")),
            "--workers", str(self._workers), "--frontends", str(self._frontends),
            "--model", str(setting.model), "--model-name", MODEL, "--http-port", str(port),
        ]  # fmt: skip
        # A short folder: the path of a Unix socket has at most 107 bytes.
        with tempfile.TemporaryDirectory(prefix="bench") as run, stopping([]) as processes:
            # A canary waits for the end of a step, as any request does, and steps may take 10 s.
            environment = {"XDG_RUNTIME_DIR": run, "DYN_HEALTH_CHECK_REQUEST_TIMEOUT": "60"}
            begun = time.perf_counter()
            processes.append(ServerProcess(command, setting.folder / f"{self.name}.log", environment))
            taken = wait_until_ready(self.name, port, processes, begun)
            roles = {self._role: (processes[0].pid,)} if self._role else _status(port, environment)
            yield Running(self.name, port, roles, taken)


def _status(port: int, environment: Mapping[str, str]) -> dict[str, tuple[int, ...]]:
    """Process ids by kind, as ``dynamo status`` has them."""
    command = [_dynamo(), "status", "--json", "--http-port", str(port)]
    entries = json.loads(subprocess.check_output(command, env={**os.environ, **environment}))["processes"]
    return {kind: tuple(e["pid"] for e in entries if e["kind"] == kind) for kind in ("frontend", "worker")}


def _dynamo() -> str:
    return str(Path(sys.executable).with_name("dynamo"))


class Dynamo:
    """NVIDIA Dynamo's frontend with its KV router and its mocker workers, file discovery, no etcd, no NATS."""

    backends = ""

    def __init__(self, name: str = "dynamo", *flags: str, workers: int = 2, role: str = "") -> None:
        self.name = name
        self._flags = flags
        self._workers = workers
        self._role = role
        """All processes under this role, as a proxy's back end."""

    @contextlib.contextmanager
    def start(self, setting: Setting) -> Iterator[Running]:
        engine, port, python = setting.engine, free_port(), str(setting.peers / "bin" / "python")
        state = setting.folder / f"{self.name}-state"
        state.mkdir(exist_ok=True)
        kv = tempfile.mkdtemp(dir=state)
        speedup = engine.speedup or _AT_ONCE
        environment = {
            "DYN_DISCOVERY_BACKEND": "file", "DYN_FILE_KV": kv, "DYN_EVENT_PLANE": "zmq", "DYN_REQUEST_PLANE": "tcp",
            "DYN_LOG": "error", "HF_HUB_OFFLINE": "1",
        }  # fmt: skip
        if self._role:
            environment["DYN_IGNORE_OPENAI_FE_UNSUPPORTED_FIELDS"] = "1"  # vllm-router adds fields of SGLang's to each request
        frontend = [python, "-m", "dynamo.frontend", "--http-port", str(port), "--router-mode", "kv", *self._flags]
        workers = [
            python, "-m", "dynamo.mocker", "--model-path", str(setting.model), "--model-name", MODEL,
            "--num-workers", str(self._workers), "--block-size", "16", "--speedup-ratio", str(speedup),
            "--decode-speedup-ratio", str(engine.decode_speedup), "--max-num-seqs", str(engine.max_num_seqs),
            "--max-num-batched-tokens", str(engine.max_num_batched_tokens), "--num-gpu-blocks-override", str(engine.blocks),
        ]  # fmt: skip
        with stopping([]) as processes:
            begun = time.perf_counter()
            processes.append(ServerProcess(frontend, setting.folder / f"{self.name}.log", environment))
            processes.append(ServerProcess(workers, setting.folder / f"{self.name}-workers.log", environment))
            taken = wait_until_ready(self.name, port, processes, begun)
            frontend_pid, worker_pid = (process.pid for process in processes)
            roles = (
                {self._role: (frontend_pid, worker_pid)} if self._role else {"frontend": (frontend_pid,), "worker": (worker_pid,)}
            )
            yield Running(self.name, port, roles, taken)


class Proxy:
    """A Rust HTTP proxy before two back ends: it passes bytes on and neither tokenizes nor routes by KV cache."""

    def __init__(self, name: str, backends: str, *command: str) -> None:
        self.name = name
        self.backends = backends
        self._command = command

    @contextlib.contextmanager
    def start(self, setting: Setting) -> Iterator[Running]:
        port = free_port()
        urls = [f"http://127.0.0.1:{backend.port}" for backend in setting.backends]
        command = [
            str(setting.peers / "bin" / self._command[0]), *self._command[1:], "--host", "127.0.0.1", "--port", str(port),
            "--worker-urls", *urls, "--policy", "round_robin", "--prometheus-port", str(free_port()),
        ]  # fmt: skip
        with stopping([]) as processes:
            begun = time.perf_counter()
            processes.append(ServerProcess(command, setting.folder / f"{self.name}.log", {}))
            taken = wait_until_ready(self.name, port, processes, begun)
            backends = tuple(pid for backend in setting.backends for pids in backend.roles.values() for pid in pids)
            yield Running(self.name, port, {"frontend": (processes[0].pid,), "backend": backends}, taken)


_SMG = ("smg", "launch", "--log-level", "error")
_VLLM_ROUTER = ("vllm-router", "--log-level", "error")


def _servers() -> dict[str, Peer]:
    servers: list[Peer] = [
        Ours(),
        Dynamo(),
        Dynamo("dynamo-fastokens", "--tokenizer", "fastokens"),
        Proxy("smg", OURS, *_SMG),
        Proxy("vllm-router", OURS, *_VLLM_ROUTER),
        Proxy("smg-dynamo", "dynamo", *_SMG),
        Proxy("vllm-router-dynamo", "dynamo", *_VLLM_ROUTER),
    ]
    return {server.name: server for server in servers}


SERVERS = _servers()
"""By name; the first is ours."""

PROXIES = tuple(name for name, server in SERVERS.items() if server.backends)

BACKENDS: Mapping[str, Callable[[int], Peer]] = {
    OURS: lambda number: Ours(f"backend-{number}", workers=1, role="backend"),
    "dynamo": lambda number: Dynamo(f"dynamo-backend-{number}", workers=1, role="backend"),
}
"""What proxies stand before, two of a kind with a worker each. Ours write the tokens of a stream that are there as one; Dynamo's
frontend writes almost every token by itself, as an engine's own server does."""
