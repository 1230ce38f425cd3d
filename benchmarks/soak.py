"""Mixed load with cancellations for a while: does anything grow?

usage: python -m benchmarks.soak [--minutes 20] [--connections 48] [--tolerance 2]

A frontend and two mocker workers serve streams that complete, streams whose client leaves in the middle, and unary requests.
The first third of the time is warm-up; then resident memory and open file descriptors of each process are sampled. Exit code 1
when the median of the last tenth is above that of the first tenth by more than the tolerance (percent), when a request failed, or
when something is left running or open at the end.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import random
import statistics
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import NamedTuple

from benchmarks.frontend_cost import Case, Target, bodies, serving
from dynamo_core.testing.tiny_model import make_tiny_model


class Sample(NamedTuple):
    resident: int
    """KiB."""
    files: int


class Tally:
    """What the load saw."""

    def __init__(self) -> None:
        self.completed = 0
        self.left = 0
        self.failed = 0


def sample(pid: int) -> Sample:
    status = Path(f"/proc/{pid}/status").read_text()
    return Sample(int(status.split("VmRSS:")[1].split()[0]), len(list(Path(f"/proc/{pid}/fd").iterdir())))


async def client(port: int, kinds: dict[str, list[bytes]], until: float, tally: Tally, seed: int) -> None:
    chooser = random.Random(seed)
    while time.monotonic() < until:
        kind = chooser.choice(("stream", "stream", "leave", "unary"))
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
        writer.write(chooser.choice(kinds["unary" if kind == "unary" else "stream"]))
        head = await reader.readuntil(b"\r\n\r\n")
        if b" 200 " not in head[:16]:
            tally.failed += 1
        elif kind == "leave":
            await reader.read(chooser.randrange(1, 4096))
            tally.left += 1
        elif kind == "stream":
            body = await reader.readuntil(b"0\r\n\r\n")
            tally.completed += b"[DONE]" in body
            tally.failed += b"[DONE]" not in body
        else:
            await reader.readexactly(int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0]))
            tally.completed += 1
        writer.close()


async def load(target: Target, minutes: float, connections: int) -> tuple[Tally, dict[int, list[Sample]]]:
    kinds = {
        "stream": bodies(Case("", 200, 64, True, 0), "bench"),
        "unary": bodies(Case("", 400, 2, False, 0), "bench"),
    }
    tally = Tally()
    start = time.monotonic()
    until = start + minutes * 60
    clients = [asyncio.create_task(client(target.port, kinds, until, tally, seed)) for seed in range(connections)]
    samples: dict[int, list[Sample]] = {pid: [] for pids in target.roles.values() for pid in pids}
    while time.monotonic() < until:
        await asyncio.sleep(minutes * 60 / 150)
        if time.monotonic() - start > minutes * 20:
            for pid, taken in samples.items():
                taken.append(sample(pid))
    await asyncio.gather(*clients)
    return tally, samples


def left_running(port: int) -> float:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith("dynamo_frontend_inflight_requests"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--connections", type=int, default=48)
    parser.add_argument("--tolerance", type=float, default=2, help="percent of growth after warm-up")
    options = parser.parse_args()
    print("command:", *sys.argv)
    print(f"machine: {platform.platform()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    wrong = []
    with tempfile.TemporaryDirectory() as folder, serving(make_tiny_model(Path(folder) / "tiny", weights=False)) as target:
        idle = {pid: sample(pid).files for pids in target.roles.values() for pid in pids}
        tally, samples = asyncio.run(load(target, options.minutes, options.connections))
        time.sleep(2)  # the last clients' connections close
        running = left_running(target.port)
        files = {pid: sample(pid).files for pid in samples}
    print(
        f"{tally.completed} completed, {tally.left} left by their client, {tally.failed} failed; {running:.0f} running at the end"
    )
    if tally.failed or running:
        wrong.append("requests failed or were left running")
    for role, pids in target.roles.items():
        for pid in pids:
            taken = samples[pid]
            tenth = max(1, len(taken) // 10)
            first, last = (statistics.median(s.resident for s in part) for part in (taken[:tenth], taken[-tenth:]))
            growth = (last / first - 1) * 100
            memory = f"resident {first / 1024:.1f} → {last / 1024:.1f} MiB ({growth:+.1f} %)"
            print(f"{role} {pid}: {memory}, files {idle[pid]} → {files[pid]}")
            if growth > options.tolerance:
                wrong.append(f"{role} grew by {growth:.1f} %")
            if files[pid] > idle[pid] + 4:  # connections between processes are made on first use
                wrong.append(f"{role} kept {files[pid] - idle[pid]} files open")
    print("; ".join(wrong) or "nothing grew")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
