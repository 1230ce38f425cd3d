"""CPU time that the frontend and the workers spend on a streamed token and on a unary request, everything switched on.

usage: python -m benchmarks.frontend_cost [--model FOLDER] [--connections 32 256] [--seconds 6] [--rounds 3]
                                          [--peer NAME PORT PID[,PID…]]

Starts `dynamo serve` with two mocker workers and no simulated delay, drives it over loopback with keep-alive connections that ask
again as soon as they have their answer, and reads each process tree's CPU time before and after. A peer is a server that runs
already and serves the model name `bench`: it is measured in turn with ours, and the ratio of the medians is printed. CPU time is
steadier than wall time, but it too goes up when other work shares the machine: compare only what one run printed.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from dynamo_core.testing.tiny_model import make_tiny_model

TICKS = os.sysconf("SC_CLK_TCK")
WORDS = ("the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "while", "many", "animals", "watch", "the", "river")
TOKENS = 128


class Target(NamedTuple):
    name: str
    port: int
    roles: dict[str, list[int]]
    """Role → process ids; the children of each count too."""


class Case(NamedTuple):
    label: str
    words: int
    max_tokens: int
    stream: bool
    connections: int


class Cost(NamedTuple):
    requests: int
    failed: int
    micros: dict[str, float]
    """Role → µs CPU: a token for streams, a request for unary ones."""


def cpu_seconds(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        children = [int(child) for task in tasks for child in (task / "children").read_text().split()]
    except FileNotFoundError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / TICKS + sum(map(cpu_seconds, children))


def bodies(case: Case, model: str) -> list[bytes]:
    chooser = random.Random(1)
    shared = " ".join(chooser.choice(WORDS) for _ in range(case.words // 2))
    made = []
    for _ in range(64):
        text = shared + " " + " ".join(chooser.choice(WORDS) for _ in range(case.words - case.words // 2))
        body = json.dumps(
            {
                "model": model,
                "messages": [{"role": "user", "content": text}],
                "max_tokens": case.max_tokens,
                "stream": case.stream,
                "temperature": 0,
                "ignore_eos": True,
            }
        ).encode()
        head = "POST /v1/chat/completions HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\n"
        made.append(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
    return made


async def drive(port: int, requests: list[bytes], case: Case, seconds: float) -> tuple[int, int]:
    """Answered and failed requests within the time; every connection finishes the request it is at."""
    deadline = time.monotonic() + seconds
    done = failed = 0

    async def connection(number: int) -> None:
        nonlocal done, failed
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
        turn = number
        while time.monotonic() < deadline:
            writer.write(requests[turn % len(requests)])
            turn += 1
            head = await reader.readuntil(b"\r\n\r\n")
            if b"chunked" in head.lower():
                body = await reader.readuntil(b"0\r\n\r\n")
            else:
                length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                body = await reader.readexactly(length)
            if b" 200 " in head[:16] and (not case.stream or b"[DONE]" in body):
                done += 1
            else:
                failed += 1
        writer.close()

    await asyncio.gather(*(connection(number) for number in range(case.connections)))
    return done, failed


def measure(target: Target, case: Case, model: str, seconds: float) -> Cost:
    requests = bodies(case, model)
    before = {role: sum(map(cpu_seconds, pids)) for role, pids in target.roles.items()}
    done, failed = asyncio.run(drive(target.port, requests, case, seconds))
    spent = {role: sum(map(cpu_seconds, pids)) - before[role] for role, pids in target.roles.items()}
    share = max(1, done + failed) * (case.max_tokens if case.stream else 1)
    return Cost(done, failed, {role: value / share * 1e6 for role, value in spent.items()})


@contextlib.contextmanager
def serving(model: Path) -> Iterator[Target]:
    with tempfile.TemporaryDirectory() as folder, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        dynamo = str(Path(sys.executable).with_name("dynamo"))
        arguments = ["--plugin", "kv-router", "--engine", "mocker", "--engine-arg", "speedup_ratio=0", "--workers", "2"]
        environment = {**os.environ, "XDG_RUNTIME_DIR": folder}
        with (Path(folder) / "log").open("wb") as log:
            command = [dynamo, "serve", *arguments, "--model", str(model), "--model-name", "bench", "--http-port", str(port)]
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            for _ in range(300):
                with contextlib.suppress(OSError):
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=1).close()
                    break
                time.sleep(0.1)
            status = [dynamo, "status", "--json", "--http-port", str(port)]
            processes = json.loads(subprocess.check_output(status, env=environment))["processes"]
            roles: dict[str, list[int]] = {}
            for entry in processes:
                roles.setdefault(entry["kind"], []).append(entry["pid"])
            yield Target("dynamo-core", port, roles)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


def resident(target: Target) -> float:
    """MiB of the first frontend."""
    status = Path(f"/proc/{target.roles['frontend'][0]}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="model folder; a tiny one is made if not given")
    parser.add_argument("--connections", type=int, nargs="+", default=[32, 256])
    parser.add_argument("--words", type=int, nargs="+", default=[20, 500], help="prompt lengths of the unary cases")
    parser.add_argument("--seconds", type=float, default=6)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peer", nargs=3, action="append", default=[], metavar=("NAME", "PORT", "FRONTEND_PID,WORKER_PID"))
    options = parser.parse_args()
    print("command:", *sys.argv)
    print(f"machine: {platform.platform()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    print(
        "versions: Python", platform.python_version(), *(f"{name} {version(name)}" for name in ("uvicorn", "litestar", "uvloop"))
    )
    cases = [Case(f"stream, {n} connections", 20, TOKENS, True, n) for n in options.connections]
    cases += [Case(f"unary, {words} words", words, 1, False, 16) for words in options.words]
    with tempfile.TemporaryDirectory() as folder:
        model = options.model or make_tiny_model(Path(folder) / "tiny", weights=False)
        with serving(model) as ours:
            targets = [ours]
            for name, port, pids in options.peer:
                first, _, rest = pids.partition(",")
                targets.append(
                    Target(name, int(port), {"frontend": [int(first)], "worker": [int(p) for p in rest.split(",") if p]})
                )
            compare(targets, cases, options.seconds, options.rounds)
            for target in targets:
                print(f"{target.name}: frontend resident {resident(target):.0f} MiB after the runs")


def compare(targets: list[Target], cases: list[Case], seconds: float, rounds: int) -> None:
    for case in cases:
        for target in targets:
            measure(target, case, "bench", min(seconds, 2))  # warm-up
        costs: dict[str, list[Cost]] = {target.name: [] for target in targets}
        for _ in range(rounds):
            for target in targets:
                costs[target.name].append(measure(target, case, "bench", seconds))
        unit = "a token" if case.stream else "a request"
        medians: dict[str, dict[str, float]] = {}
        for name, rows in costs.items():
            medians[name] = {role: statistics.median(row.micros[role] for row in rows) for role in rows[0].micros}
            spread = [round(row.micros["frontend"], 1) for row in rows]
            told = ", ".join(f"{role} {value:.1f} µs" for role, value in medians[name].items())
            print(
                f"{case.label:24} {name:12} {told} CPU {unit}; frontend's rounds {spread}; "
                f"{sum(row.requests for row in rows)} completed, {sum(row.failed for row in rows)} failed"
            )
        for name in list(medians)[1:]:
            ratios = {role: medians[targets[0].name][role] / value for role, value in medians[name].items() if value}
            print(f"{'':24} ratio to {name}: " + ", ".join(f"{role} {ratio:.2f}" for role, ratio in ratios.items()))


if __name__ == "__main__":
    main()
