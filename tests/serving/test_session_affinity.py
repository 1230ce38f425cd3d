from __future__ import annotations

import random
from typing import Any

import pytest

from dynamo_core.contracts import ModelCard, RouteRequest, WorkerView
from dynamo_core.serving import session_affinity as module
from dynamo_core.serving.session_affinity import SessionAffinity
from dynamo_core.testing.clock import FakeClock


def workers(*inflight: int) -> dict[int, WorkerView]:
    return {i: WorkerView(i, ModelCard(name="m", path=""), inflight=count) for i, count in enumerate(inflight, 1)}


def request(session: str = "s", **more: Any) -> RouteRequest:
    return RouteRequest(id="r", token_ids=(), session=session, **more)


def test_hard_holds_while_the_worker_lives_whatever_its_load() -> None:
    affinity, fleet = SessionAffinity(60, "hard"), workers(50, 0, 0)
    assert affinity.worker(request(), fleet, fleet) is None
    affinity.placed("s", 1)
    assert affinity.worker(request(), fleet, {2: fleet[2]}) == 1, "even while it is left out for failing others"
    assert affinity.worker(request(excluded=frozenset({1})), fleet, fleet) is None
    del fleet[1]
    assert affinity.worker(request(), fleet, fleet) is None


def test_soft_yields_to_load_and_moves_with_the_request() -> None:
    affinity, fleet = SessionAffinity(60, "soft"), workers(1, 0, 0)
    affinity.placed("s", 1)
    assert affinity.worker(request(), fleet, fleet) == 1, "one request more is no load"
    fleet[1].inflight, fleet[2].inflight, fleet[3].inflight = 12, 10, 10
    assert affinity.worker(request(), fleet, fleet) == 1
    fleet[1].inflight = 18
    assert affinity.worker(request(), fleet, fleet) is None
    fleet[1].inflight, fleet[1].inflight_elsewhere = 10, 8
    assert affinity.worker(request(), fleet, fleet) is None, "the load of all frontends counts"
    affinity.placed("s", 3)
    assert affinity.worker(request(), fleet, fleet) == 3
    assert affinity.worker(request(), fleet, {1: fleet[1], 2: fleet[2]}) is None


@pytest.mark.parametrize("mode", ["hard", "soft"])
def test_a_session_is_forgotten_after_its_time(mode: Any) -> None:
    clock = FakeClock()
    affinity, fleet = SessionAffinity(60, mode, clock), workers(0, 0)
    affinity.placed("s", 2)
    clock.advance(59)
    assert affinity.worker(request(), fleet, fleet) == 2
    affinity.placed("s", 2)
    clock.advance(59)
    assert affinity.worker(request(), fleet, fleet) == 2
    clock.advance(2)
    assert not list(affinity.places())
    assert affinity.worker(request(), fleet, fleet) is None
    assert not len(affinity)


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LIMIT", 100)
    affinity = SessionAffinity(60, "hard")
    for number in range(1000):
        affinity.placed(f"s{number}", 1)
        assert len(affinity) <= 100
    assert [place.session for place in affinity.places()][-1] == "s999"


def test_frontends_agree_whatever_the_order_in_which_they_hear() -> None:
    lots = random.Random(3)
    for _ in range(300):
        clocks = [FakeClock(), FakeClock(), FakeClock()]
        tables = [SessionAffinity(60, "hard", clock) for clock in clocks]
        inboxes: list[list[Any]] = [[], [], []]
        for _ in range(6):
            for clock in clocks:
                clock.advance(lots.choice([0, 0.01]))
            which = lots.randrange(3)
            told = tables[which].placed("s", lots.randrange(3))
            for other in range(3):
                if other != which:
                    inboxes[other].append(told)
            if lots.random() < 0.5:
                deliver(tables, inboxes, lots)
        deliver(tables, inboxes, lots)
        assert len({place.worker_id for table in tables for place in table.places()}) == 1


def deliver(tables: list[SessionAffinity], inboxes: list[list[Any]], lots: random.Random) -> None:
    for table, inbox in zip(tables, inboxes, strict=True):
        lots.shuffle(inbox)
        for place in inbox:
            table.heard(place)
        inbox.clear()
