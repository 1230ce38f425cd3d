"""Mixed load with cancellations for a while: does anything grow?

usage: python -m benchmarks.soak [--minutes 20] [--connections 48] [--tolerance 2] [--speedup 0]

A frontend and two mocker workers serve streams that complete, streams whose client leaves in the middle, and unary requests, some
with log-probabilities. The first third of the time is warm-up; then resident memory and open file descriptors of each process
are sampled. Exit code 1 when the median of the last tenth is above that of the first tenth by more than the tolerance (percent),
when a request failed, or when a task, a request or a file descriptor is left behind at the end.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from benchmarks.deployment import Deployment, deployed, introduce
from dynamo_core.testing.tiny_model import make_tiny_model

_WORDS = (
    "the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "while", "many", "animals", "watch", "the", "river",
)  # fmt: skip
_KINDS = ("stream", "stream", "leave", "leave", "unary", "logprobs")


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


def request(kind: str, chooser: random.Random) -> bytes:
    """Every prompt is another one, with a beginning that others have, too."""
    shared = " ".join(random.Random(chooser.randrange(8)).choices(_WORDS, k=chooser.choice((20, 100, 300))))
    text = shared + " " + " ".join(chooser.choices(_WORDS, k=chooser.randrange(1, 120)))
    tokens = 4 if kind == "unary" else chooser.randrange(1, 96)
    extra = ',"logprobs":true,"top_logprobs":2' if kind == "logprobs" else ""
    stream = "false" if kind == "unary" else "true"
    body = (
        f'{{"model":"bench","messages":[{{"role":"user","content":"{text}"}}],"max_tokens":{tokens},"stream":{stream},'
        f'"ignore_eos":true{extra}}}'
    )
    head = "POST /v1/chat/completions HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\nconnection: close\r\n"
    return f"{head}content-length: {len(body)}\r\n\r\n{body}".encode()


async def client(port: int, until: float, tally: Tally, seed: int) -> None:
    chooser = random.Random(seed)
    while time.monotonic() < until:
        kind = chooser.choice(_KINDS)
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
        writer.write(request(kind, chooser))
        if kind == "leave":
            await reader.read(chooser.randrange(1, 4096))
            tally.left += 1
        else:
            body = await reader.read(-1)
            whole = b" 200 " in body[:16] and (kind == "unary" or b"[DONE]" in body)
            tally.completed += whole
            tally.failed += not whole
        writer.close()


async def load(server: Deployment, pids: list[int], options: argparse.Namespace) -> tuple[Tally, dict[int, list[Sample]]]:
    tally = Tally()
    seconds = options.minutes * 60
    start = time.monotonic()
    clients = [asyncio.create_task(client(server.port, start + seconds, tally, seed)) for seed in range(options.connections)]
    samples: dict[int, list[Sample]] = {pid: [] for pid in pids}
    while time.monotonic() < start + seconds:
        await asyncio.sleep(seconds / 150)
        for pid, taken in samples.items():
            taken.append(sample(pid))
    await asyncio.gather(*clients)
    return tally, {pid: taken[len(taken) // 3 :] for pid, taken in samples.items()}


def course(taken: list[Sample]) -> str:
    """The medians of ten parts of the time, MiB."""
    size = max(1, len(taken) // 10)
    parts = [taken[place : place + size] for place in range(0, len(taken), size)][:10]
    return " ".join(f"{statistics.median(one.resident for one in part) / 1024:.1f}" for part in parts)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--connections", type=int, default=48)
    parser.add_argument("--tolerance", type=float, default=2, help="percent of growth after warm-up")
    parser.add_argument("--speedup", type=float, default=0, help="of the simulated engines; 0: as fast as they can")
    parser.add_argument("--router", default="kv-router")
    options = parser.parse_args()
    introduce()
    with tempfile.TemporaryDirectory(prefix="dyn-") as folder:
        model = make_tiny_model(Path(folder) / "tiny", weights=False)
        arguments = ("--workers", "2", "--plugin", "kv-router", "--router", options.router)
        with deployed(model, Path(folder) / "s", *arguments, "--engine-arg", f"speedup_ratio={options.speedup}") as server:
            return judge(server, options)


def judge(server: Deployment, options: argparse.Namespace) -> int:
    roles = {name: pid for kind in ("frontend", "worker") for name, pid in asyncio.run(server.pids(kind)).items()}
    for _ in range(3):  # connections between processes are made on first use
        asyncio.run(client(server.port, time.monotonic() + 0.5, Tally(), 0))
    time.sleep(2)
    files, tasks = {pid: sample(pid).files for pid in roles.values()}, asyncio.run(server.tasks())
    tally, samples = asyncio.run(load(server, list(roles.values()), options))
    time.sleep(5)  # the last clients' connections close
    running, tasks_after = server.series("dynamo_frontend_inflight_requests"), asyncio.run(server.tasks())
    told = f"{tally.completed} completed, {tally.left} left by their client, {tally.failed} failed"
    print(f"{told}; {running:.0f} running at the end")
    wrong = ["requests failed or were left running"] if tally.failed or running else []
    for name, pid in roles.items():
        taken = samples[pid]
        tenth = max(1, len(taken) // 10)
        first, last = (statistics.median(one.resident for one in part) for part in (taken[:tenth], taken[-tenth:]))
        growth, after = (last / first - 1) * 100, sample(pid).files
        print(
            f"{name}: resident {first / 1024:.1f} → {last / 1024:.1f} MiB ({growth:+.1f} %; {course(taken)}), "
            f"files {files[pid]} → {after}, tasks {tasks[name]} → {tasks_after[name]}"
        )
        if growth > options.tolerance:
            wrong.append(f"{name} grew by {growth:.1f} %")
        if after > files[pid] or tasks_after[name] > tasks[name]:
            wrong.append(f"{name} left files or tasks behind")
    print("result:", "; ".join(wrong) or "nothing grew")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
