"""One trace through mockers behind a real dispatcher and through the simulator: the router must choose the same."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import random
from collections.abc import AsyncIterator
from itertools import groupby
from pathlib import Path
from typing import Any

import msgspec
import pytest

from dynamo_core.builtins.round_robin import RoundRobin
from dynamo_core.config import Settings
from dynamo_core.contracts import Context, EngineRequest, Route, RouterContext, RouteRequest, StopConditions
from dynamo_core.plugins import Provider, activate
from dynamo_core.runtime import DistributedRuntime
from dynamo_core.runtime.discovery.mem import MemDiscovery
from dynamo_core.runtime.discovery.table import Table
from dynamo_core.runtime.planes.inproc import InprocEvents, InprocHub, InprocPlane
from dynamo_core.serving.manager import ModelManager
from dynamo_core.serving.served_model import ServedModel
from dynamo_core.serving.worker import EngineWorker
from dynamo_core.simulator import Cluster, MakeRouter, Simulation, Trace, TraceRequest
from dynamo_core.specs import PlaneContext, RouterSpec
from dynamo_kv_router.config import KvRouterConfig
from dynamo_kv_router.router import KvRouter

WORKERS, BLOCKS, SIZE = 3, 24, 16


class Overheard:
    """A router, its choices in order, and when it was called for which request.

    With ``times`` (of another one) it lives by that one's clock: what a busy machine delays is no reason to choose otherwise.
    """

    def __init__(self, make: MakeRouter, context: RouterContext, times: dict[tuple[str, str], float] | None = None) -> None:
        self._given = times
        self._now = 0.0
        self._clock = context.clock
        if times is not None:
            context = msgspec.structs.replace(context, clock=lambda: self._now)
        self._router = make(context)
        self.times: dict[tuple[str, str], float] = {}
        self.choices: dict[str, tuple[int, int]] = {}
        for name in ("kv_events", "kv_lost", "worker_added", "worker_removed"):
            if hasattr(self._router, name):
                setattr(self, name, getattr(self._router, name))

    def _called(self, method: str, request: RouteRequest) -> None:
        self.times[method, request.id] = self._clock()
        if self._given is not None:
            self._now = max(self._now, self._given[method, request.id])

    def select(self, requests: Any, workers: Any) -> Any:
        for request in requests:
            self._called("select", request)
        decisions = self._router.select(requests, workers)
        for request, decision in zip(requests, decisions, strict=True):
            assert isinstance(decision, Route)
            self.choices[request.id] = (decision.worker_id, decision.overlap_blocks)
        return decisions

    def first_token(self, request: RouteRequest, worker_id: int) -> None:
        self._called("first_token", request)
        if hasattr(self._router, "first_token"):
            self._router.first_token(request, worker_id)

    def finished(self, request: RouteRequest, worker_id: int, outcome: Any) -> None:
        self._called("finished", request)
        if hasattr(self._router, "finished"):
            self._router.finished(request, worker_id, outcome)


def conversations() -> Trace:
    """Nine conversations whose turns come up to six at once, too many for the caches; each group after the one before is done."""
    lots = random.Random(3)
    turns = [0] * 9
    requests: list[TraceRequest] = []
    for group in range(20):
        for who in lots.sample(range(9), lots.choice((1, 2, 4, 6))):
            turns[who] += 1
            blocks = [0, *(1000 * (who + 1) + i for i in range(min(9, 2 * turns[who])))]
            tokens = len(blocks) * SIZE - lots.randrange(1, SIZE)
            requests.append(TraceRequest(group * 2000.0, tokens, 2 + who % 3, tuple(blocks)))
    return Trace(tuple(requests), SIZE)


class Done:
    """Receives what one request generates."""

    def __init__(self) -> None:
        self.generated: list[int] = []
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.sequence: Any = None

    def on_routed(self, worker_id: int) -> None:
        pass

    def on_items(self, items: Any) -> None:
        for item in items:
            if type(item) is int:
                self.generated.append(item)
            elif type(item) is dict and item.get("finish_reason") and not self.over.done():
                self.over.set_result(None)
                self.sequence.complete()

    def on_error(self, error: Exception) -> None:
        self.over.set_exception(error)


@contextlib.asynccontextmanager
async def served(folder: Path, make: Any) -> AsyncIterator[ServedModel]:
    compiled = activate(["mocker"])
    table, hub = Table(), InprocHub()
    args = {"num_blocks": BLOCKS, "block_size": SIZE, "vocab_size": 300}
    async with contextlib.AsyncExitStack() as stack:

        async def runtime(number: int) -> DistributedRuntime:
            context = PlaneContext(namespace="dynamo", run_dir="", instance_id=number)
            made = DistributedRuntime(
                None, MemDiscovery(table), InprocPlane(context, hub), event_plane=InprocEvents(context, hub)
            )
            made.instance_id = number
            await made.start()
            stack.push_async_callback(made.shutdown)
            return made

        router = Provider(RouterSpec(name="overheard", factory=make), "overheard")
        manager = ModelManager(await runtime(WORKERS + 1), compiled, router, Settings())
        stack.push_async_callback(manager.stop)
        await manager.start()
        for number in range(1, WORKERS + 1):
            settings = Settings(model=str(folder), model_name="m", engine="mocker", engine_args=args, graceful_shutdown_secs=0.1)
            worker = EngineWorker(await runtime(number), compiled.engine("mocker"), settings)
            stack.push_async_callback(worker.stop)
            await worker.start()
        while not (manager.models() and len(manager.get("m").workers) == WORKERS):  # noqa: ASYNC110  # nothing tells of it
            await asyncio.sleep(0.01)
        yield manager.get("m")


async def live(folder: Path, trace: Trace, make: MakeRouter, times: dict[tuple[str, str], float]) -> dict[str, tuple[int, int]]:
    routers: list[Overheard] = []

    def factory(_config: Any, context: RouterContext) -> Overheard:
        routers.append(Overheard(make, context, times))
        return routers[-1]

    async with served(folder, factory) as model:
        dispatcher = model._dispatcher
        for _, group in groupby(enumerate(trace.requests), key=lambda pair: pair[1].at_ms):
            running = []
            for index, request in group:
                tokens = list(trace.token_ids(request))
                receiver = Done()
                stop = StopConditions(max_tokens=request.output_length, ignore_eos=True)
                receiver.sequence = dispatcher.submit(
                    RouteRequest(id=str(index), token_ids=tokens),
                    EngineRequest(id=str(index), token_ids=tokens, stop=stop),
                    Context(),
                    receiver,
                )
                running.append(receiver)
            for receiver in running:
                await receiver.over
            for _ in range(20):  # turns of the loop in which the last KV events arrive
                await asyncio.sleep(0)
    return routers[0].choices


@pytest.mark.parametrize(
    "make", [functools.partial(KvRouter, KvRouterConfig()), functools.partial(RoundRobin, None)], ids=["kv-router", "round-robin"]
)
async def test_decisions_are_those_of_live_mockers(tiny_model: Path, make: MakeRouter) -> None:
    trace = conversations()
    routers: list[Overheard] = []

    def simulated(context: RouterContext) -> Overheard:
        routers.append(Overheard(make, context))
        return routers[-1]

    run = Simulation(trace, Cluster(workers=WORKERS, blocks=BLOCKS, block_size=SIZE), simulated).run()
    assert all(log.end_ms >= 0 for log in run.requests)
    expected = routers[0].choices
    assert await live(tiny_model, trace, make, routers[0].times) == expected
    assert len({worker for worker, _ in expected.values()}) == WORKERS
