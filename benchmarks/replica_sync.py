"""What it costs frontends to tell each other of their requests. ``python -m benchmarks.replica_sync [--requests N] [--blocks N]``

Two frontends' parts in one process, with the in-process event plane: what is measured is all that both do for a request (its
beginning, first token and end, as messages are made, sent, read and booked by the other's KV router), in CPU time of the thread.
Requests come 16 a turn of the loop. For comparison: one ``select`` of the KV router, which each request pays anyway.
"""

from __future__ import annotations

import argparse
import asyncio
import platform
import sys
import time
from typing import Any

import msgspec

from dynamo_core.contracts import ModelCard, Route, RouterContext, RouteRequest, WorkerView
from dynamo_core.plugins import Faults
from dynamo_core.serving.replicas import ReplicaSync
from dynamo_core.serving.router_guard import RouterGuard
from dynamo_core.serving.sharing import ModelSharing
from dynamo_core.testing.cluster import InprocCluster
from dynamo_kv_router.router import KvRouter

SIZE, WORKERS, A_TURN = 16, 8, 16


class Frontend:
    def __init__(self, runtime: Any) -> None:
        card = ModelCard(name="m", path="", block_size=SIZE, total_kv_blocks=1 << 16, kv_events=True)
        self.workers = {worker: WorkerView(worker, card) for worker in range(1, WORKERS + 1)}
        self.router = KvRouter(None, RouterContext(model="m", block_size=SIZE, clock=time.monotonic))
        for worker in self.workers.values():
            self.router.worker_added(worker)
        self.sync = ReplicaSync(runtime, "dynamo")
        self.sharing = ModelSharing("m", self.sync)
        self.sharing.attach(RouterGuard(self.router, "m", "kv-router", Faults()), self.workers, lambda: None)
        self.sync.join("m", self.sharing)


async def measure(requests: int, blocks: int, *, peers: int) -> tuple[float, float]:
    """Microseconds a request: of ``select``, ``first_token`` and ``finished`` alone, and of telling the others, them included."""
    async with InprocCluster() as cluster:
        one, *others = [Frontend(await cluster.runtime()) for _ in range(1 + peers)]
        for frontend in (one, *others):
            await frontend.sync.start()
        while len(one.sync.peers) < peers:
            await asyncio.sleep(0.01)
        choosing = telling = 0
        for first in range(0, requests, A_TURN):
            batch = [
                RouteRequest(id="r", token_ids=[(first + i) * 7 + place for place in range(blocks * SIZE)]) for i in range(A_TURN)
            ]
            began = time.thread_time_ns()
            routes = [route for route in one.router.select(batch, one.workers) if isinstance(route, Route)]
            chosen = time.thread_time_ns()
            pairs = list(zip(batch, routes, strict=True))
            numbers = [one.sharing.begun(route.worker_id, request, route) for request, route in pairs]
            await settle()
            for number in numbers:
                one.sharing.answered(number)
            await settle()
            for number in numbers:
                one.sharing.ended(number)
            await settle()
            told = time.thread_time_ns()
            for request, route in pairs:
                one.router.first_token(request, route.worker_id)
                one.router.finished(request, route.worker_id, "completed")
            choosing += chosen - began + time.thread_time_ns() - told
            telling += told - chosen
        for frontend in (one, *others):
            await frontend.sync.close()
        return choosing / requests / 1000, telling / requests / 1000


async def settle() -> None:
    for _ in range(4):
        await asyncio.sleep(0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--requests", type=int, default=8000)
    parser.add_argument("--blocks", type=int, nargs="*", default=[8, 64, 512])
    args = parser.parse_args()
    print(f"python -m benchmarks.replica_sync {' '.join(sys.argv[1:])}".rstrip())
    print(f"Python {platform.python_version()}, msgspec {msgspec.__version__}, {platform.machine()}\n")
    print("microseconds a request, all frontends together")
    print(f"{'blocks':>6}  {'the choice':>10}  {'alone':>7}  {'1 other':>7}  {'3 others':>8}")
    for blocks in args.blocks:
        count = min(args.requests, 512_000 // blocks // A_TURN * A_TURN)
        choice, alone = asyncio.run(measure(count, blocks, peers=0))
        _, one = asyncio.run(measure(count, blocks, peers=1))
        _, three = asyncio.run(measure(count, blocks, peers=3))
        print(f"{blocks:>6}  {choice:>10.1f}  {alone:>7.1f}  {one:>7.1f}  {three:>8.1f}")


if __name__ == "__main__":
    main()
