"""Traffic unlike the conversation trace: agents with tool loops, chats and one-offs. ``python -m benchmarks.agent_trace FILE``

A trace in Mooncake's format, made from a seed alone. Three kinds of clients, mixed:

* agents: one of six programs with a long system prompt and tool descriptions (4,000 to 12,000 tokens, shared by all its runs). A
  run is 3 to 25 calls; each call's prompt is the one before, its answer and a tool's result (100 to 3,000 tokens), and comes when
  the answer is out and the tool has run: 0.3 to 8 seconds. Several agents start from one task at once.
* chats: one of four shared system prompts (500 to 2,000 tokens), 1 to 12 turns, people who think for half a minute.
* one-offs: documents of 500 to 30,000 tokens that nobody asks about twice, and short questions.

Times are in milliseconds and not rounded; an answer is taken to need 25 ms a token. Of the KV router's weights only
``scarce`` was chosen with an eye on it, on seed 1.
"""

from __future__ import annotations

import argparse
import heapq
import json
import random
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import NamedTuple

from dynamo_core.simulator import Trace, TraceRequest

__all__ = ["agent_trace"]

BLOCK = 64
"""Tokens a hash id."""
ANSWER_MS = 25.0
SHARES = (("agent", 0.25), ("chat", 0.35), ("one-off", 0.40))


class Call(NamedTuple):
    prompt: tuple[int, ...]
    """Segments: pieces of text of which equal numbers mean equal text."""
    output: int
    pause_ms: float
    """From the end of the call before."""


class Writer:
    """Pieces of text and their lengths."""

    def __init__(self, lots: random.Random) -> None:
        self._lots = lots
        self.lengths: list[int] = []

    def piece(self, least: int, most: int) -> int:
        """Lengths are spread evenly in the logarithm."""
        self.lengths.append(int(least * (most / least) ** self._lots.random()))
        return len(self.lengths) - 1


def _session(kind: str, lots: random.Random, text: Writer, systems: dict[str, list[int]]) -> Iterator[Call]:
    if kind == "one-off":
        yield Call((text.piece(20, 30_000),), int(lots.expovariate(1 / 150)) + 1, 0)
        return
    prompt = [lots.choice(systems[kind]), text.piece(50, 2_000)]
    agent = kind == "agent"
    for turn in range(lots.randint(3, 25) if agent else lots.randint(1, 12)):
        pause = (lots.uniform(300, 8_000) if agent else lots.expovariate(1 / 30_000)) if turn else 0.0
        output = int(lots.expovariate(1 / (120 if agent else 250))) + 1
        yield Call(tuple(prompt), output, pause)
        prompt += [text.piece(output, output + 1), text.piece(100, 3_000) if agent else text.piece(15, 400)]


def agent_trace(requests: int, seed: int = 0, sessions_per_s: float = 1.2) -> Trace:
    """The first ``requests`` calls of a Poisson stream of sessions."""
    lots = random.Random(seed)
    text = Writer(lots)
    systems = {"agent": [text.piece(4_000, 12_000) for _ in range(6)], "chat": [text.piece(500, 2_000) for _ in range(4)]}
    kinds, shares = zip(*SHARES, strict=True)
    order, calls = count(), []
    waiting: list[tuple[float, int, Iterator[Call], Call]] = []
    start = 0.0
    while len(calls) < requests:
        while not waiting or waiting[0][0] > start:
            (kind,) = lots.choices(kinds, shares)
            for _ in range(lots.randint(1, 4) if kind == "agent" else 1):  # one task, several agents
                session = _session(kind, lots, text, systems)
                heapq.heappush(waiting, (start + lots.random() * 50, next(order), session, next(session)))
            start += lots.expovariate(sessions_per_s) * 1000
        at, _, session, call = heapq.heappop(waiting)
        calls.append((at, call))
        following = next(session, None)
        if following is not None:
            heapq.heappush(waiting, (at + call.output * ANSWER_MS + following.pause_ms, next(order), session, following))
    return _numbered(calls, text.lengths)


def _numbered(calls: list[tuple[float, Call]], lengths: list[int]) -> Trace:
    """Blocks get numbers: a block is what stands in it together with all before it."""
    numbers: dict[tuple[int, tuple[int, ...], int], int] = {}
    made = []
    for at, call in calls:
        blocks, parent, end, position = [], -1, 0, 0
        total = sum(lengths[piece] for piece in call.prompt)
        pieces = iter(call.prompt)
        inside: list[int] = []
        for start in range(0, total, BLOCK):
            inside = inside[-1:] if position > start else []
            while position < min(start + BLOCK, total):
                inside.append(next(pieces))
                position += lengths[inside[-1]]
            end = min(BLOCK, total - start)
            parent = numbers.setdefault((parent, tuple(inside), end), len(numbers))
            blocks.append(parent)
        made.append(TraceRequest(round(at, 1), total, call.output, tuple(blocks)))
    return Trace(tuple(made), BLOCK)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file")
    parser.add_argument("--requests", type=int, default=12_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sessions-per-s", type=float, default=1.2)
    options = parser.parse_args()
    trace = agent_trace(options.requests, options.seed, options.sessions_per_s)
    with Path(options.file).open("w") as file:
        for request in trace.requests:
            line = {
                "timestamp": request.at_ms, "input_length": request.input_length, "output_length": request.output_length,
                "hash_ids": request.blocks, "block_size": BLOCK,
            }  # fmt: skip
            file.write(json.dumps(line) + "\n")
    seen: set[int] = set()
    again = tokens = 0
    for request in trace.requests:
        tokens += request.input_length
        again += BLOCK * sum(block in seen for block in request.blocks)
        seen.update(request.blocks)
    number, span = len(trace.requests), trace.requests[-1].at_ms / 1000
    print(f"{number} requests in {span:.0f} s, {tokens / number:.0f} prompt tokens each, {again / tokens:.3f} seen before")


if __name__ == "__main__":
    main()
