"""What ``--frontends N`` wins. ``python -m benchmarks.frontends [--frontends N] [--connections N] [--rounds N] [--seconds S]``

For each number of frontends in turn, with two mocker workers and no simulated delay: tokens a second of the whole system and
CPU time a token, what share of the connections each frontend got, and whether they route alike: prompts are sent through one
frontend, and another one is asked where it would send the conversation's next turn: at once, and 50 ms later.

More frontends need more cores: where frontends, workers and the load share two, they win nothing. CPU a token holds elsewhere.
"""

from __future__ import annotations

import argparse
import http.client
import json
import platform
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.peers.cases import ENGINES
from benchmarks.peers.limits import within
from benchmarks.peers.load import ClosedLoop
from benchmarks.peers.processes import accepted, cpu_seconds
from benchmarks.peers.prompts import MODEL, RepeatedPrompts
from benchmarks.peers.servers import Ours, Running, Setting
from dynamo_core.testing.tiny_model import make_tiny_model

__all__ = ["Link", "links_by_frontend", "main"]

_TOKENS = 128
_BLOCK = 16
_PROMPTS = 64
_MOMENT_SECONDS = 0.05
_ACCEPT_SECONDS = 20.0
_QUERY: Mapping[str, Any] = {"nvext": {"annotations": ["query_instance_id"]}}


class Link(http.client.HTTPConnection):
    """A keep-alive connection to one of several frontends that share a port."""

    def __init__(self, port: int, model: str = MODEL) -> None:
        super().__init__("127.0.0.1", port, timeout=60)
        self.connect()
        self.own_port: int = self.sock.getsockname()[1]
        self._model = model

    def post(self, prompt: list[int], **more: Any) -> http.client.HTTPResponse:
        body = {"model": self._model, "prompt": prompt, "max_tokens": 2, "ignore_eos": True, **more}
        self.request("POST", "/v1/completions", json.dumps(body), {"content-type": "application/json", "x-dynamo-debug": "route"})
        return self.getresponse()

    def ask(self, prompt: list[int], **more: Any) -> tuple[Any, list[int]]:
        """The answer, and the worker that gave it."""
        response = self.post(prompt, **more)
        answer = json.load(response)
        if response.status != 200:
            raise ValueError(str(answer))
        return answer, [route["worker"] for route in json.loads(response.getheader("x-dynamo-route") or "[]")]

    def would_go(self, prompt: list[int]) -> tuple[int, int]:
        """The worker that this frontend would choose, and how many blocks of the prompt are cached there."""
        answer, _ = self.ask(prompt, **_QUERY)
        return answer["worker_instance_id"], answer["overlap_blocks"]

    def explain(self, prompt: list[int]) -> str:
        """Why, as JSON."""
        response = self.post(prompt, **_QUERY)
        response.read()
        return response.getheader("x-dynamo-route") or ""


def links_by_frontend(port: int, pids: tuple[int, ...], count: int, model: str = MODEL) -> dict[int, list[Link]]:
    """So many connections, by the process that accepted them."""
    made = [Link(port, model) for _ in range(count)]
    deadline = time.monotonic() + _ACCEPT_SECONDS
    while True:
        owners = {client: pid for pid in pids for client in accepted(pid, port)}
        if all(link.own_port in owners for link in made):
            return {pid: [link for link in made if owners[link.own_port] == pid] for pid in pids}
        if time.monotonic() > deadline:
            raise TimeoutError("not every connection was accepted")
        time.sleep(0.01)


class Round(NamedTuple):
    tokens_a_second: float
    frontend_us: float
    """CPU microseconds a token."""
    worker_us: float
    shares: list[float]
    """Of the connections, ascending."""
    failed: int


def measure(server: Running, connections: int, seconds: float) -> Round:
    counts: list[int] = []
    over = threading.Event()

    def count() -> None:
        """The load's thread lets this one run when it likes: the first sight of all connections counts, or the fullest."""
        while sum(counts) < connections and not over.wait(0.05):
            seen = [len(accepted(pid, server.port)) for pid in server.roles["frontend"]]
            if sum(seen) > sum(counts):
                counts[:] = seen

    counting = threading.Thread(target=count)
    before = {role: cpu_seconds(pids) for role, pids in server.roles.items()}
    counting.start()
    try:
        made = ClosedLoop(server.port, RepeatedPrompts(20, (_TOKENS, _TOKENS), stream=True), connections).run(seconds)
    finally:
        over.set()
        counting.join()
    shares = sorted(one / max(1, sum(counts)) for one in counts)
    tokens = max(1, made.completed) * _TOKENS
    spent = {role: (cpu_seconds(pids) - before[role]) / tokens * 1e6 for role, pids in server.roles.items()}
    return Round(made.completed * _TOKENS / made.seconds, spent["frontend"], spent["worker"], shares, made.failed)


def agreement(server: Running) -> tuple[float, float]:
    """Of how many first turns another frontend would send the next one to the same worker: asked at once, and a moment later."""
    shares = [links for links in links_by_frontend(server.port, server.roles["frontend"], 32).values() if links]
    if len(shares) < 2:
        return 1.0, 1.0
    at_once = later = 0
    for number in range(_PROMPTS):
        first, then = shares[number % len(shares)], shares[(number + 1) % len(shares)]
        prompt = [3 + (number * 7919 + place * 31 + place * place) % 600 for place in range(12 * _BLOCK + 1)]
        _, (worker,) = first[number % len(first)].ask(prompt[: 8 * _BLOCK])
        at_once += then[number % len(then)].would_go(prompt)[0] == worker
        time.sleep(_MOMENT_SECONDS)
        later += then[number % len(then)].would_go(prompt)[0] == worker
    for links in shares:
        for link in links:
            link.close()
    return at_once / _PROMPTS, later / _PROMPTS


_COLUMNS = (
    "frontends", "tokens/s", "frontends, µs CPU a token", "workers", "least share of connections",
    "same worker for the next turn, at once and 50 ms later", "failed",
)  # fmt: skip


def _report(rounds: Mapping[int, Sequence[Round]], alike: Mapping[int, tuple[float, float]], connections: int) -> None:
    print(f"python -m benchmarks.frontends {' '.join(sys.argv[1:])}")
    print(f"{platform.platform()}, Python {platform.python_version()}; {connections} connections, medians of the rounds\n")
    print(f"| {' | '.join(_COLUMNS)} |\n{'|---' * len(_COLUMNS)}|")
    for number, made in rounds.items():
        cells = (
            f"{number}",
            f"{statistics.median(one.tokens_a_second for one in made):,.0f}",
            f"{statistics.median(one.frontend_us for one in made):.1f}",
            f"{statistics.median(one.worker_us for one in made):.1f}",
            f"{statistics.median(one.shares[0] for one in made):.0%}",
            f"{alike[number][0]:.0%}, {alike[number][1]:.0%}" if number > 1 else "",
            f"{sum(one.failed for one in made)}",
        )
        print(f"| {' | '.join(cells)} |")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.frontends", description=__doc__)
    parser.add_argument("--frontends", type=int, action="append", help="repeatable (1 and 2)")
    parser.add_argument("--connections", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--model", type=Path, help="model folder (a small one)")
    options = parser.parse_args()
    numbers: list[int] = options.frontends or [1, 2]
    rounds: dict[int, list[Round]] = {number: [] for number in numbers}
    alike: dict[int, tuple[float, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        model = options.model or make_tiny_model(Path(folder) / "tiny", weights=False)
        setting = Setting(model=model, engine=ENGINES["instant"], peers=Path(folder), folder=Path(folder))
        for turn in range(options.rounds):
            for number in numbers:
                with Ours(frontends=number).start(setting) as server, within(4 * options.seconds + 90):
                    measure(server, options.connections, min(2.0, options.seconds))  # warm
                    rounds[number].append(measure(server, options.connections, options.seconds))
                    if turn == 0:
                        alike[number] = agreement(server)
    _report(rounds, alike, options.connections)
    return 1 if any(one.failed for made in rounds.values() for one in made) else 0


if __name__ == "__main__":
    sys.exit(main())
