"""CPU time of the KV router's choice: one request of 256 blocks among 64 workers. ``python -m benchmarks.router_select``

Rows: how much of the prompt the workers have. The baseline is the round-robin router, which looks at nothing. ``hashing`` is the
part that names the prompt's blocks and comes on top of what an index look-up costs; it is included in ``select``.
"""

from __future__ import annotations

import platform
import statistics
import sys
import time
from collections.abc import Callable

import xxhash

from dynamo_core.builtins.round_robin import RoundRobin
from dynamo_core.contracts import KvBatch, KvStored, ModelCard, Route, RouterContext, RouteRequest, WorkerView
from dynamo_core.kv import PromptHashes, sequence_hashes
from dynamo_kv_router.router import KvRouter

WORKERS, BLOCKS, SIZE, ROUNDS = 64, 256, 16, 300
PROMPT = list(range(1000, 1000 + BLOCKS * SIZE))
OTHER = list(range(500_000, 500_000 + BLOCKS * SIZE))


def workers() -> dict[int, WorkerView]:
    card = ModelCard(name="m", path="", block_size=SIZE, total_kv_blocks=16384, kv_events=True)
    return {i: WorkerView(i, card) for i in range(1, WORKERS + 1)}


def router(held: Callable[[int], int]) -> KvRouter:
    """With 8 streams on each worker, which holds the first ``held(worker)`` blocks of the prompt."""
    made = KvRouter(None, RouterContext(model="m", block_size=SIZE, clock=time.monotonic))
    views = workers()
    for view in views.values():
        made.worker_added(view)
    hashes = sequence_hashes(PROMPT, SIZE)
    for i in range(8 * WORKERS):
        request = RouteRequest(id=f"busy {i}", token_ids=[7 * i + j for j in range(400)])
        (decision,) = made.select([request], views)
        assert isinstance(decision, Route)
        made.first_token(request, decision.worker_id)
    for worker in views:
        made.kv_events(KvBatch(worker, 0, (KvStored(tuple(hashes[: held(worker)])),)))
    return made


def measure(call: Callable[[], object], after: Callable[[], object] = lambda: None) -> float:
    """Median microseconds of one call; ``after`` puts things back and is not counted."""
    times = []
    for _ in range(ROUNDS):
        began = time.thread_time_ns()
        call()
        times.append(time.thread_time_ns() - began)
        after()
    return statistics.median(times) / 1000


def select_us(made: KvRouter | RoundRobin, prompt: list[int]) -> float:
    views = workers()
    last: list[tuple[RouteRequest, int]] = []

    def choose() -> None:
        request = RouteRequest(id="r", token_ids=prompt)
        (decision,) = made.select([request], views)
        assert isinstance(decision, Route)
        last.append((request, decision.worker_id))

    def finish() -> None:
        if isinstance(made, KvRouter):
            made.finished(*last.pop(), "cancelled")

    return measure(choose, finish)


def hash_us(blocks: int) -> float:
    return measure(lambda: PromptHashes(PROMPT, SIZE).upto(blocks)) if blocks else 0.0


def main() -> None:
    print("command:", " ".join(sys.orig_argv))
    print(f"machine: {platform.machine()}, {platform.processor() or platform.system()}; Python {platform.python_version()}; ")
    print(f"xxhash {xxhash.VERSION}; {WORKERS} workers with 8 streams each, {BLOCKS} blocks of {SIZE} tokens, median of {ROUNDS}")
    baseline = select_us(RoundRobin(None, RouterContext(model="m", block_size=SIZE, clock=time.monotonic)), PROMPT)
    print(f"\n{'workers have':34}{'select':>10}{'hashing':>10}{'the rest':>10}{'÷ round robin':>15}")
    print(f"{'(round robin)':34}{baseline:8.1f}µs{'':35}")
    cases: list[tuple[str, Callable[[int], int], list[int], int]] = [
        ("nothing of the prompt", lambda _: BLOCKS, OTHER, 8),
        ("the first 16 blocks, all of them", lambda _: 16, PROMPT, 32),
        ("all of it, one worker", lambda w: BLOCKS * (w == 9), PROMPT, BLOCKS),
        ("all of it, all of them", lambda _: BLOCKS, PROMPT, BLOCKS),
        ("each another part of it", lambda w: 4 * w, PROMPT, BLOCKS),
    ]
    for name, held, prompt, hashed in cases:
        total, hashing = select_us(router(held), prompt), hash_us(hashed)
        print(f"{name:34}{total:8.1f}µs{hashing:8.1f}µs{total - hashing:8.1f}µs{total / baseline:15.1f}")


if __name__ == "__main__":
    main()
