"""What the router learns of engines that decode faster or slower than its first guess."""

from __future__ import annotations

import random
from typing import Any

import pytest

from dynamo_core.contracts import ForeignRequest, RouterContext
from dynamo_core.kv.timing import TimingModel
from dynamo_core.simulator import Cluster, Simulation, Trace, TraceRequest
from dynamo_kv_router.router import KvRouter


def chats(count: int) -> Trace:
    """About ten streams a worker; quiet and busy spells."""
    lots, at, requests = random.Random(3), 0.0, []
    for i in range(count):
        at += lots.expovariate(1 / (60 if i // 100 % 2 else 200))
        blocks = tuple(range(i * 100, i * 100 + lots.randint(4, 60)))
        requests.append(TraceRequest(at, len(blocks) * 64, lots.randint(200, 320), blocks))
    return Trace(tuple(requests), 64)


def learned(decode: tuple[float, float, float]) -> tuple[float, float]:
    """What a running token costs an answer in truth, and what the router believes, in milliseconds."""
    made: list[KvRouter] = []

    def make(context: RouterContext) -> KvRouter:
        made.append(KvRouter(None, context))
        return made[-1]

    trace = chats(1500)
    cluster = Cluster(workers=4, blocks=16_384, block_size=64, timing=TimingModel(decode=decode))
    Simulation(trace, cluster, make).run()
    length = sum(request.output_length for request in trace.requests) / len(trace.requests)
    return decode[1] / cluster.capacity * length, made[0].state()["decode"]["running_token_ms"]


@pytest.mark.parametrize("factor", [0.25, 1, 4])
def test_an_engine_whose_decoding_suffers_more_or_less_from_what_runs_is_known(factor: float) -> None:
    truth, belief = learned((0.0, 54.0 * factor, 5.74))
    assert truth / 1.5 < belief < truth * 1.5


def test_only_whole_answers_of_its_own_requests_say_how_long_decoding_takes(make_fleet: Any) -> None:
    fleet = make_fleet(1)

    def believed() -> float:
        belief: float = fleet.router.state()["decode"]["running_token_ms"]
        return belief

    first = believed()
    lots = random.Random(1)
    for _ in range(50):
        request, route = fleet.send(range(lots.randrange(100, 5000)))
        fleet.router.finished(request, route.worker_id, "cancelled")
        foreign = ForeignRequest(id="f", token_ids=(), prompt_tokens=lots.randrange(100, 5000))
        fleet.router.routed_elsewhere(foreign, 1)
        fleet.router.first_token(foreign, 1)
        fleet.now += 0.001 * foreign.prompt_tokens
        fleet.router.finished(foreign, 1, "completed")
    for _ in range(50):
        request, route = fleet.send(range(length := lots.randrange(100, 5000)))
        fleet.router.first_token(request, route.worker_id)
        fleet.now += 0.001 * length
        fleet.router.finished(request, route.worker_id, "cancelled")
    assert believed() == pytest.approx(first * fleet.router.state()["prefill"]["token_ms"] / 0.02, rel=0.01)
    for _ in range(50):
        request, route = fleet.send(range(length := lots.randrange(100, 5000)))
        fleet.router.first_token(request, route.worker_id)
        fleet.now += 0.001 * length
        fleet.router.finished(request, route.worker_id, "completed")
    assert believed() > 1.5 * first
