"""The ways to drive one vLLM engine that ``benchmarks.vllm_throughput`` compares, started with the same arguments for vLLM."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.completion_streams import Answered, ask_together
from benchmarks.deployment import end
from benchmarks.peers.processes import cpu_seconds, tree
from dynamo_core.contracts import EngineContext
from dynamo_core.testing.servers import free_port

__all__ = ["SERVERS", "Driven", "Setting", "run_offline"]

START_SECONDS = 240


class Setting:
    """What all of them are started with."""

    def __init__(self, model: Path, engine_args: Mapping[str, Any], folder: Path) -> None:
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.platforms import current_platform

        from dynamo_vllm.args import engine_arguments, environment

        self.model = model
        self.folder = folder
        self.engine_args = {**batch_defaults(AsyncEngineArgs, engine_args), **engine_args}
        cpu = bool(current_platform.is_cpu())
        context = EngineContext(model_path=str(model), model_name="bench", worker_id=0, args=self.engine_args)
        arguments = engine_arguments(AsyncEngineArgs, context, None, cpu=cpu)
        self.arguments = {key: value for key, value in arguments.items() if value is not None and key != "served_model_name"}
        given = environment(context, arguments, cpu=cpu)
        if cpu and hasattr(os, "sched_getaffinity"):
            given.setdefault("VLLM_CPU_OMP_THREADS_BIND", ",".join(map(str, sorted(os.sched_getaffinity(0)))))
        ours = ("DYN_VLLM_WORKER_PID", "DYN_VLLM_OUTPUT")
        self.environment = {**os.environ, **{key: value for key, value in given.items() if key not in ours}}

    def log(self, name: str) -> Path:
        return self.folder / f"{name}.log"


def batch_defaults(known: Any, given: Mapping[str, Any]) -> dict[str, int]:
    """What vLLM takes for a server where nothing is said.

    Driven offline it would take twice as many tokens, and compute the prompts of all streams in half as many steps.
    """
    from vllm.usage.usage_lib import UsageContext

    world = int(given.get("tensor_parallel_size") or 1) * int(given.get("pipeline_parallel_size") or 1)
    tokens, sequences = known.get_batch_defaults(world)
    server = UsageContext.OPENAI_API_SERVER
    return {"max_num_batched_tokens": tokens[server], "max_num_seqs": sequences[server]}


class Driven:
    """A server that is ready, by its process and the way to ask it."""

    def __init__(self, pid: int, generate: Callable[[Sequence[Sequence[int]], int], Answered]) -> None:
        self._pid = pid
        self.generate = generate
        """Prompts, and how many tokens each shall have."""

    def cpu_seconds(self) -> dict[str, float]:
        """So far: of vLLM's engine core and of all processes around it."""
        engine = cpu_seconds(pid for pid in tree(self._pid) if _is_engine(pid))
        return {"engine": engine, "around it": cpu_seconds([self._pid]) - engine}


def _is_engine(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return b"VLLM::EngineCore" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


@contextlib.contextmanager
def _process(setting: Setting, name: str, command: Sequence[str], **more: Any) -> Iterator[subprocess.Popen[bytes]]:
    environment = {**setting.environment, "XDG_RUNTIME_DIR": str(setting.folder)}
    with setting.log(name).open("wb") as log:
        started = subprocess.Popen(command, env=environment, stdout=more.pop("stdout", log), stderr=log, **more)
        try:
            yield started
        finally:
            end(started)


@contextlib.contextmanager
def _http_server(setting: Setting, name: str, command: Sequence[str], port: int, path: str) -> Iterator[Driven]:
    with _process(setting, name, command) as started:

        def wait() -> None:
            deadline = time.monotonic() + START_SECONDS
            while True:
                with contextlib.suppress(OSError):
                    urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=2).close()
                    return
                if started.poll() is not None or time.monotonic() > deadline:
                    sys.exit(f"{name} is not ready:\n{setting.log(name).read_text(errors='replace')[-3000:]}")
                time.sleep(0.3)

        def generate(prompts: Sequence[Sequence[int]], tokens: int) -> Answered:
            wait()  # one that was ready was not any more when others had started
            return ask_together(port, prompts, tokens)

        wait()
        yield Driven(started.pid, generate)


@contextlib.contextmanager
def _ours(setting: Setting) -> Iterator[Driven]:
    port = free_port()
    arguments = [f"--engine-arg={key}={json.dumps(value)}" for key, value in setting.engine_args.items()]
    command = [
        sys.executable, "-c", "from dynamo_core.cli import main; main()", "serve", "--plugin", "kv-router", "--engine", "vllm",
        "--model", str(setting.model), "--model-name", "bench", "--http-port", str(port), *arguments,
    ]  # fmt: skip
    with _http_server(setting, "ours", command, port, "/ready") as driven:
        yield driven


@contextlib.contextmanager
def _vllm(setting: Setting) -> Iterator[Driven]:
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
    with _http_server(setting, "vllm", command, port, "/health") as driven:
        yield driven


@contextlib.contextmanager
def _offline(setting: Setting, name: str = "offline", **more: Any) -> Iterator[Driven]:
    arguments = {**setting.arguments, "disable_log_stats": True, **more}
    command = [sys.executable, "-m", "benchmarks.vllm_throughput", "--offline", json.dumps(arguments)]
    with _process(setting, name, command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as started:
        orders, lines = started.stdin, started.stdout
        assert orders is not None
        assert lines is not None

        def answer() -> Any:
            for line in lines:  # vLLM prints things, too
                if line.startswith(b"{"):
                    return json.loads(line)
            sys.exit(f"{name} did not start:\n{setting.log(name).read_text(errors='replace')[-3000:]}")

        def generate(prompts: Sequence[Sequence[int]], tokens: int) -> Answered:
            orders.write(json.dumps({"prompts": prompts, "tokens": tokens}).encode() + b"\n")
            orders.flush()
            return Answered(answer()["seconds"], [], 0.0)

        try:
            answer()
            yield Driven(started.pid, generate)
        finally:
            orders.close()  # it ends its engine and itself
            with contextlib.suppress(subprocess.TimeoutExpired):
                started.wait(30)


def _alike(setting: Setting) -> contextlib.AbstractContextManager[Driven]:
    sockets = {"endpoint": f"ipc://{setting.folder}/alike.sock", "replay_endpoint": f"ipc://{setting.folder}/alike-replay.sock"}
    events = {"enable_kv_cache_events": True, "publisher": "zmq", **sockets}
    return _offline(setting, "alike", disable_log_stats=False, kv_events_config=events)


def run_offline(arguments: dict[str, Any]) -> None:
    """The child of ``offline``: a line of prompts in, a line of seconds out."""
    from vllm import LLM, SamplingParams

    llm = LLM(**arguments)
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


SERVERS: Mapping[str, Callable[[Setting], contextlib.AbstractContextManager[Driven]]] = {
    "ours": _ours,
    "offline": _offline,
    "alike": _alike,
    "vllm": _vllm,
}
