"""What the KV router's choice costs. ``python -m benchmarks.router_select [--rounds N] [--peer PYTHON]``

``select`` is measured whole, in CPU time of its one thread: from the request's token ids (an ``array("I")``, as a frontend has
them) to the ``Route``, with hashing as much of the prompt as is looked at, the match, the cost of every worker, the explanation
and the books. Not in it: tokenizing, and what happens after the choice. Each worker has 8 streams of other prompts.

* ``new``: nobody has the prompt. ``seen``: every other worker has it, and this router has hashed it before, as the next turn of a
  conversation finds it. ``shared``: every worker has it and its tokens are new to this router, as after other frontends' traffic.
* ``÷ rr``: the median of ``seen`` ÷ that of the round-robin router, which looks at nothing.

Then the index alone: bytes and time a block, and how long a look-up takes beside the ``RadixTree`` of Dynamo's wheel with the
same blocks, if ``--peer`` (or $DYNAMO_PYTHON) names a Python that has ai-dynamo-runtime.
"""

from __future__ import annotations

import argparse
import gc
import os
import platform
import random
import subprocess
import sys
import time
import tracemalloc
from array import array
from collections.abc import Callable

import msgspec
import xxhash

from dynamo_core.builtins.round_robin import RoundRobin
from dynamo_core.contracts import KvBatch, KvStored, ModelCard, Route, RouterContext, RouteRequest, WorkerView
from dynamo_core.kv import PrefixIndex, PromptHashes, block_hashes, sequence_hashes
from dynamo_kv_router.router import KvRouter

SIZE = 16
WORKERS, BLOCKS = (4, 64, 512), (8, 256, 2048)
STREAMS = 8
INDEXED = 64_000
"""Blocks of each of 8 workers in the memory measurement."""


class Times(msgspec.Struct, frozen=True):
    """Microseconds."""

    median: float
    p99: float

    def __str__(self) -> str:
        return f"{self.median:7.1f} /{self.p99:7.1f}"


def measure(call: Callable[[int], object], after: Callable[[], object], rounds: int) -> Times:
    """``after`` puts things back and is not counted."""
    times = []
    for number in range(rounds + 10):
        began = time.thread_time_ns()
        call(number)
        times.append(time.thread_time_ns() - began)
        after()
    times = sorted(times[10:])
    return Times(times[len(times) // 2] / 1000, times[int(len(times) * 0.99)] / 1000)


def context() -> RouterContext:
    return RouterContext(model="m", block_size=SIZE, clock=time.monotonic)


def views_of(count: int) -> dict[int, WorkerView]:
    card = ModelCard(name="m", path="", block_size=SIZE, total_kv_blocks=1 << 20, kv_events=True)
    return {i: WorkerView(i, card) for i in range(1, count + 1)}


def prompt_of(number: int, blocks: int) -> array[int]:
    return array("I", [(number * 7919 + i * 31) % 262_144 for i in range(blocks * SIZE)])


def busy_router(workers: int) -> KvRouter:
    made, views = KvRouter(None, context()), views_of(workers)
    for view in views.values():
        made.worker_added(view)
    for i in range(STREAMS * workers):
        request = RouteRequest(id=f"busy {i}", token_ids=[7 * i + j for j in range(400)])
        (decision,) = made.select([request], views)
        assert isinstance(decision, Route)
        made.first_token(request, decision.worker_id)
    return made


def select_times(made: KvRouter | RoundRobin, workers: int, prompts: list[array[int]], rounds: int) -> Times:
    """``prompts`` in turn."""
    views = views_of(workers)
    last: list[tuple[RouteRequest, int]] = []

    def choose(number: int) -> None:
        request = RouteRequest(id="r", token_ids=prompts[number % len(prompts)])
        (decision,) = made.select([request], views)
        assert isinstance(decision, Route)
        last.append((request, decision.worker_id))

    def finish() -> None:
        if isinstance(made, KvRouter):
            made.finished(*last.pop(), "cancelled")

    return measure(choose, finish, rounds)


def cell(workers: int, blocks: int, rounds: int) -> tuple[Times, Times, Times, float]:
    # As many different prompts as rounds would take minutes to make at 2,048 blocks.
    fresh = min(rounds + 10, max(20, 200_000 // blocks))
    new = select_times(busy_router(workers), workers, [prompt_of(i, blocks) for i in range(1, fresh + 1)], fresh - 10)
    made, prompt = busy_router(workers), prompt_of(0, blocks)
    hashes = tuple(sequence_hashes(prompt, SIZE))
    for worker in range(1, workers + 1, 2):
        made.kv_events(KvBatch(worker, 0, (KvStored(hashes),)))
    seen = select_times(made, workers, [prompt], rounds)
    made, prompts = busy_router(workers), [prompt_of(i, blocks) for i in range(fresh)]
    for other in prompts:
        hashes = tuple(sequence_hashes(other, SIZE))
        for worker in range(1, workers + 1):
            made.kv_events(KvBatch(worker, 0, (KvStored(hashes),)))
        if workers * blocks > 64 * 256 and other is prompts[39]:
            prompts = prompts[:40]  # memory: every worker has every block
            break
    shared = select_times(made, workers, prompts, len(prompts) - 10)
    return new, seen, shared, select_times(RoundRobin(None, context()), workers, [prompt], rounds).median


def print_select(rounds: int) -> None:
    print(f"\nselect, µs: median / p99, {STREAMS} streams a worker, blocks of {SIZE} tokens")
    print(f"{'workers × blocks':>18}{'new':>18}{'seen':>18}{'shared':>18}{'÷ rr':>8}")
    for workers in WORKERS:
        for blocks in BLOCKS:
            new, seen, shared, baseline = cell(workers, blocks, rounds)
            print(f"{workers:>9} × {blocks:<6}{new!s:>18}{seen!s:>18}{shared!s:>18}{seen.median / baseline:8.1f}", flush=True)
            gc.collect()


def print_hashing(rounds: int) -> None:
    prompt = prompt_of(0, 256)
    ids = list(prompt)
    packed = measure(lambda _: PromptHashes(prompt, SIZE).upto(256), lambda: None, rounds)
    listed = measure(lambda _: PromptHashes(ids, SIZE).upto(256), lambda: None, rounds)
    print(f"\nhashing 256 blocks of {SIZE} tokens, part of the above, µs: median / p99")
    print(f"ids in an array {packed}; in a list {listed}")


def fill(index: PrefixIndex, *, same: bool, blocks: int) -> float:
    """Runs of 64 blocks for each of 8 workers, as events bring them: every number an object of its own. Seconds in the index."""
    spent = 0.0
    for slot in [index.open(1 << 30) for _ in range(8)]:
        lots = random.Random(0 if same else slot)
        for _ in range(blocks // 64):
            run = tuple(lots.getrandbits(64) for _ in range(64))
            began = time.perf_counter()
            index.stored(slot, run)
            spent += time.perf_counter() - began
    return spent


def print_index(same: bool) -> None:
    index, stored = PrefixIndex(), 8 * INDEXED
    speed = stored / fill(index, same=same, blocks=INDEXED) / 1e6
    began = time.perf_counter()
    index.close(3)
    gone = (time.perf_counter() - began) * 1e6
    began, blocks, nobodys = time.perf_counter(), len(index), range(-64, 0)
    for _ in range(blocks // 256 + 1):  # each change looks at four blocks for each that it names
        index.removed(0, nobodys)
    swept = (time.perf_counter() - began) / blocks * 1e6
    tracemalloc.start()
    weighed = PrefixIndex()
    fill(weighed, same=same, blocks=INDEXED)
    size = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    print(
        f"8 workers × {INDEXED:,}, each {'the same blocks' if same else 'blocks of its own'}: {size / stored:.0f} bytes a block "
        f"and worker, {size / len(weighed):.0f} a different block; {speed:.1f} million blocks stored a second; "
        f"a worker leaves in {gone:.0f} µs, and {swept:.2f} µs a block of the index go to sweeping while others come"
    )


PEER = """
import json, sys, time
from dynamo._core import RadixTree
told = json.load(sys.stdin)
tree = RadixTree()
for worker in range(told["workers"]):
    blocks = [{"block_hash": s, "tokens_hash": b, "mm_extra_info": None} for s, b in zip(told["sequence"], told["blocks"])]
    event = {"event_id": worker, "data": {"stored": {"parent_hash": None, "blocks": blocks}}, "dp_rank": 0}
    tree.apply_event(worker, json.dumps(event).encode())
times = []
for _ in range(told["rounds"]):
    began = time.perf_counter_ns()
    scores = tree.find_matches(told["blocks"]).scores
    times.append(time.perf_counter_ns() - began)
assert set(scores.values()) == {len(told["blocks"])} and len(scores) == told["workers"], scores
times.sort()
print(json.dumps([times[len(times) // 2] / 1000, times[int(len(times) * 0.99)] / 1000]))
"""


def print_peer(python: str, rounds: int) -> None:
    """Look-ups with the hashes ready on both sides; every worker has the whole prompt."""
    found = python and subprocess.run([python, "-c", "from dynamo._core import RadixTree"], capture_output=True, check=False)
    if not found or found.returncode:
        print("\nbeside Dynamo's RadixTree: left out; --peer names a Python that has ai-dynamo-runtime")
        return
    print("\nlook-up alone, hashes ready, every worker has the prompt, µs: median / p99")
    print(f"{'workers × blocks':>18}{'PrefixIndex':>18}{'RadixTree':>18}{'÷':>8}")
    for workers in WORKERS:
        for blocks in BLOCKS:
            prompt = prompt_of(0, blocks)
            sequence, local = sequence_hashes(prompt, SIZE), block_hashes(prompt, SIZE)
            index = PrefixIndex()
            for _ in range(workers):
                index.stored(index.open(1 << 20), sequence)
            hashes = PromptHashes(prompt, SIZE)
            hashes.upto(blocks)
            ours = measure(lambda _, i=index, h=hashes: i.match(h), lambda: None, rounds)  # type: ignore[misc]
            told = msgspec.json.encode({"workers": workers, "sequence": sequence, "blocks": local, "rounds": rounds})
            done = subprocess.run([python, "-c", PEER], input=told, capture_output=True, check=True)
            theirs = Times(*msgspec.json.decode(done.stdout, type=tuple[float, float]))
            print(f"{workers:>9} × {blocks:<6}{ours!s:>18}{theirs!s:>18}{ours.median / theirs.median:8.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument("--peer", default=os.environ.get("DYNAMO_PYTHON", ""), metavar="PYTHON")
    options = parser.parse_args()
    print("command:", " ".join(sys.orig_argv))
    print(f"machine: {platform.machine()}, {os.cpu_count()} cores; Python {platform.python_version()}; xxhash {xxhash.VERSION}")
    print_index(same=False)
    print_index(same=True)
    print_select(options.rounds)
    print_hashing(options.rounds)
    print_peer(options.peer, options.rounds)


if __name__ == "__main__":
    main()
