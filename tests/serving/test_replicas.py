"""Frontends tell each other what they route, and forget those that are gone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from dynamo_core.contracts import ModelCard, Route, RouteRequest, WorkerView
from dynamo_core.plugins import Faults
from dynamo_core.serving import replicas as module
from dynamo_core.serving.replicas import ReplicaSync
from dynamo_core.serving.router_guard import RouterGuard
from dynamo_core.serving.session_affinity import SessionAffinity
from dynamo_core.serving.sharing import ModelSharing
from dynamo_core.testing.cluster import InprocCluster

CARD = ModelCard(name="m", path="")


class Heard:
    """A router that writes down what it hears of other frontends' requests."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []
        self.notes: list[Any] = []

    def select(self, requests: Any, workers: Any) -> Any:
        raise AssertionError("nobody asks")

    def routed_elsewhere(self, request: Any, worker_id: int) -> None:
        self.told.append(("routed", worker_id, request.prompt_tokens, request.overlap_blocks))
        self.notes.append(request.note)

    def first_token(self, request: Any, worker_id: int) -> None:
        self.told.append(("first_token", worker_id))

    def finished(self, request: Any, worker_id: int, outcome: str) -> None:
        self.told.append(("finished", worker_id))


class Frontend:
    """What a model manager does with a replica sync, for one model and two workers."""

    def __init__(self, runtime: Any) -> None:
        self.runtime = runtime
        self.sync = ReplicaSync(runtime, "dynamo")
        self.router = Heard()
        self.workers = {worker: WorkerView(worker, CARD) for worker in (101, 102)}
        self.sharing = ModelSharing("m", self.sync, SessionAffinity(60, "hard"))
        self.offers = 0
        self.sharing.attach(RouterGuard(self.router, "m", "heard", Faults()), self.workers, self.offered)

    def offered(self) -> None:
        self.offers += 1

    async def start(self, *, join: bool = True) -> Frontend:
        if join:
            self.sync.join("m", self.sharing)
        await self.sync.start()
        return self

    def route(self, worker: int = 101, tokens: int = 10, session: str | None = None, **more: Any) -> int:
        request = RouteRequest(id="r", token_ids=range(tokens), session=session)
        return self.sharing.begun(worker, request, Route(worker, 2, **more))

    def elsewhere(self) -> tuple[int, int]:
        a, b = self.workers.values()
        return a.inflight_elsewhere, b.inflight_elsewhere


@pytest.fixture
async def cluster() -> AsyncIterator[InprocCluster]:
    async with InprocCluster() as cluster:
        yield cluster


@pytest.fixture
async def make(cluster: InprocCluster) -> AsyncIterator[Callable[..., Any]]:
    made: list[Frontend] = []

    async def make(**options: Any) -> Frontend:
        frontend = Frontend(await cluster.runtime())
        made.append(frontend)
        return await frontend.start(**options)

    yield make
    for frontend in made:
        await frontend.sync.close()


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110  # what other callbacks bring about
            await asyncio.sleep(0.002)


async def met(*frontends: Frontend) -> None:
    await until(lambda: all(len(one.sync.peers) == len(frontends) - 1 for one in frontends))


async def test_each_sees_the_others_requests_from_beginning_to_end(make: Any) -> None:
    one, two = await make(), await make()
    await met(one, two)
    number = one.route(note=lambda: [7, 8])
    await until(lambda: two.router.told)
    assert two.router.told == [("routed", 101, 10, 2)]
    assert two.router.notes == [[7, 8]]
    assert two.elsewhere() == (1, 0)
    assert two.workers[101].inflight_tokens_elsewhere == 10
    assert two.workers[101].running == 1
    one.sharing.answered(number)
    one.sharing.ended(number)
    await until(lambda: len(two.router.told) == 3)
    assert two.router.told[1:] == [("first_token", 101), ("finished", 101)]
    assert two.elsewhere() == (0, 0)
    assert two.workers[101].inflight_tokens_elsewhere == 0
    assert two.offers == 2, "what waits is offered again"
    assert not one.router.told, "one's own are not told again"


async def test_who_comes_late_learns_of_what_runs(make: Any) -> None:
    one = await make()
    for _ in range(1200):
        one.route()
    numbers = [one.route(102), one.route(102)]
    one.sharing.answered(numbers[0])
    two = await make()
    await until(lambda: two.elsewhere() == (1200, 2))
    assert two.router.told.count(("first_token", 102)) == 1
    one.sharing.ended(numbers[0])
    await until(lambda: two.elsewhere() == (1200, 1))


async def test_a_model_or_a_worker_that_is_known_late_gets_its_due(make: Any) -> None:
    one, two = await make(), await make(join=False)
    await met(one, two)
    one.sharing.answered(one.route())
    one.route(103)
    await until(lambda: sum(len(peer.requests) for peer in two.sync.peers.values()) == 2)
    assert two.elsewhere() == (0, 0)
    two.sync.join("m", two.sharing)
    assert two.router.told == [("routed", 101, 10, 2), ("first_token", 101)]
    two.workers[103] = WorkerView(103, CARD)
    two.sharing.worker_added(two.workers[103])
    assert two.workers[103].inflight_elsewhere == 1
    two.sharing.worker_removed(103)
    assert two.router.told[2:] == [("routed", 103, 10, 2), ("finished", 103)]


async def test_the_requests_of_a_frontend_that_is_gone_are_forgotten(make: Any) -> None:
    one, two, three = await make(), await make(), await make()
    await met(one, two, three)
    one.route()
    three.route(102)
    await until(lambda: two.elsewhere() == (1, 1))
    await one.runtime.shutdown()
    await until(lambda: two.elsewhere() == (0, 1))
    assert two.router.told[-1] == ("finished", 101)


async def test_what_got_lost_is_made_up_for(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_TAIL_SECONDS", 0.05)
    one, two = await make(), await make()
    await met(one, two)
    number = one.route()
    await until(lambda: two.elsewhere() == (1, 0))
    with monkeypatch.context() as patch:
        patch.setattr(one.runtime.event_plane, "publish", lambda topic, payload: None)
        one.sharing.ended(number)
        one.route(102)
        one.sync._flush()
    await until(lambda: two.elsewhere() == (0, 1))


async def test_so_is_what_got_lost_with_the_message_that_would_have_told(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_TAIL_SECONDS", 0.05)
    one, two = await make(), await make()
    await met(one, two)
    number = one.route()
    await until(lambda: two.elsewhere() == (1, 0))
    lost = []
    with monkeypatch.context() as patch:
        patch.setattr(one.runtime.event_plane, "publish", lambda topic, payload: lost.append(payload))
        one.sharing.ended(number)
        await until(lambda: len(lost) == 3)
    await until(lambda: two.elsewhere() == (0, 0))


async def test_a_frontend_with_another_event_plane_is_named_and_left_alone(
    make: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    one = await make()
    number = one.route()

    def foreign(address: str, *_: Any) -> Any:
        raise ValueError(f"{address!r} is no address of this plane")

    two = await make(join=False)
    monkeypatch.setattr(two.runtime.event_plane, "subscribe", foreign)
    two.sync._left(one.runtime.instance_id)
    (instance,) = [i for i in two.sync._client.instances() if i.instance_id == one.runtime.instance_id]
    two.sync._met(two.sync._client, instance)
    assert "give all processes one event plane" in caplog.text
    one.sharing.ended(number)
    await asyncio.sleep(0.05)
    assert not two.sync.peers
    assert two.elsewhere() == (0, 0)


async def test_one_turn_is_one_message_and_none_where_nobody_listens(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    one = await make()
    sent: list[bytes] = []
    publish = one.runtime.event_plane.publish
    monkeypatch.setattr(one.runtime.event_plane, "publish", lambda topic, data: (sent.append(data), publish(topic, data)))
    one.sharing.ended(one.route(note=lambda: pytest.fail("nobody wants it")))
    await asyncio.sleep(0)
    assert not sent
    two = await make()
    await met(one, two)
    sent.clear()
    for _ in range(50):
        one.sharing.ended(one.route())
    one.route()
    await until(lambda: two.elsewhere() == (1, 0))
    assert len(sent) == 1


async def test_a_note_that_cannot_be_made_or_sent_costs_only_itself(make: Any) -> None:
    one, two = await make(), await make()
    await met(one, two)
    one.route(note=lambda: 1 / 0)
    await until(lambda: two.elsewhere() == (1, 0))
    assert two.router.notes == [None]
    one.route(note=object)
    await asyncio.sleep(0)
    one.route(102)
    await until(lambda: two.elsewhere()[1] == 1)


async def test_garbage_is_passed_over(make: Any) -> None:
    one, two = await make(), await make()
    await met(one, two)
    one.runtime.event_plane.publish(module.ROUTED_TOPIC, b"\xc1garbage")
    one.runtime.event_plane.publish(module.ROUTED_TOPIC, b"\x93\x01\x02\x03")
    one.route()
    await until(lambda: two.elsewhere() == (1, 0))


async def test_sessions_hold_across_frontends_and_for_those_that_come_late(make: Any) -> None:
    one, two = await make(), await make()
    await met(one, two)
    one.sharing.ended(one.route(102, session="s"))
    await until(lambda: len(two.sharing.sessions))
    late = await make()
    await until(lambda: len(late.sharing.sessions))
    for frontend in (one, two, late):
        request = RouteRequest(id="r", token_ids=(), session="s")
        frontend.sharing.pin(request, frontend.workers)
        assert request.pinned == 102
    del two.workers[102]
    request = RouteRequest(id="r", token_ids=(), session="s")
    two.sharing.pin(request, two.workers)
    assert request.pinned is None
    two.route(101, session="s")
    await until(lambda: place(one) == place(late) == 101)


def place(frontend: Frontend) -> int | None:
    request = RouteRequest(id="r", token_ids=(), session="s")
    frontend.sharing.pin(request, frontend.workers)
    return request.pinned
