"""Requests that wait: thresholds, the queue's policies, classes and bounds."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from dynamo_core.contracts import BusyThresholds, Hold, Reject, Route, RouteRequest, RoutingHints
from dynamo_core.errors import InvalidRequest, NoInstances, Overloaded
from dynamo_kv_router.screen import HELD


def tokens(which: int, count: int) -> range:
    return range(100_000 * which, 100_000 * which + count)


def kinds(decisions: Any) -> list[str]:
    return [type(decision).__name__ for decision in decisions]


class Desk:
    """Offers what waits in every turn, as a dispatcher does."""

    def __init__(self, fleet: Any) -> None:
        self.fleet = fleet
        self.waiting: list[RouteRequest] = []
        self.sent: list[tuple[RouteRequest, int]] = []
        self.refused: list[RouteRequest] = []

    def offer(self, *requests: RouteRequest) -> None:
        offered, self.waiting = [*self.waiting, *requests], []
        for request, decision in zip(offered, self.fleet.router.select(offered, self.fleet.workers), strict=True):
            if isinstance(decision, Route):
                self.sent.append((request, decision.worker_id))
            elif isinstance(decision, Hold):
                self.waiting.append(request)
            else:
                self.refused.append(request)

    def answer(self) -> RouteRequest:
        """The oldest that runs gets its first token and ends, and what waits is offered."""
        request, worker = self.sent.pop(0)
        self.fleet.router.first_token(request, worker)
        self.fleet.router.finished(request, worker, "completed")
        self.offer()
        return request

    def drain(self) -> list[RouteRequest]:
        order = []
        while self.sent:
            order.append(self.answer())
        return order


@pytest.fixture
def desk_of(make_fleet: Any) -> Any:
    def make(count: int = 1, **config: Any) -> Desk:
        config.setdefault("router_queue_threshold", 0)
        return Desk(make_fleet(count, **config))

    return make


def test_without_a_threshold_nothing_waits(make_fleet: Any) -> None:
    fleet = make_fleet(1)
    for i in range(50):
        fleet.send(tokens(i, 1000))


def test_requests_wait_when_every_worker_has_its_share_of_a_step_to_compute(make_fleet: Any) -> None:
    fleet = make_fleet(2, router_queue_threshold=0.5)  # of 1000 tokens
    first = [fleet.send(tokens(i, 600)) for i in range(2)]
    assert kinds(fleet.router.select([fleet.request(tokens(9, 40))], fleet.workers)) == ["Hold"]
    fleet.router.first_token(first[0][0], first[0][1].worker_id)
    assert fleet.send(tokens(9, 40))[1].worker_id == first[0][1].worker_id


def test_the_oldest_goes_first_and_a_priority_is_worth_seconds(desk_of: Any) -> None:
    desk = desk_of()
    make = desk.fleet.request
    desk.offer(make(tokens(0, 10), arrival=0.0))
    one, two, three = (make(tokens(i, 10), arrival=float(i)) for i in (1, 2, 3))
    urgent = make(tokens(4, 10), arrival=4.5, priority=-2)
    desk.offer(three, urgent)
    desk.offer(one, two)
    assert desk.drain()[1:] == [one, two, urgent, three]


def test_wspt_takes_the_one_with_the_least_to_compute(desk_of: Any) -> None:
    desk = desk_of(router_queue_policy="wspt")
    make = desk.fleet.request
    desk.offer(make(tokens(0, 10)))
    long, short, middle = make(tokens(1, 900)), make(tokens(2, 50)), make(tokens(3, 400))
    urgent = make(tokens(4, 800), priority=-50)
    desk.offer(long, short, middle, urgent)
    assert desk.drain()[1:] == [urgent, short, middle, long]


def test_lcfs_takes_the_youngest(desk_of: Any) -> None:
    desk = desk_of(router_queue_policy="lcfs")
    make = desk.fleet.request
    desk.offer(make(tokens(0, 10)))
    requests = [make(tokens(i, 10), arrival=float(i)) for i in (1, 2, 3)]
    desk.offer(*requests)
    assert desk.drain()[1:] == requests[::-1]


def test_a_strict_tier_goes_before_everything(desk_of: Any) -> None:
    desk = desk_of(router_classes={"gold": 100.0})
    make = desk.fleet.request
    desk.offer(make(tokens(0, 10)))
    gold = make(tokens(1, 10), arrival=0.0, priority=-9, hints=RoutingHints(service_class="gold"))
    strict = make(tokens(2, 10), arrival=9.0, hints=RoutingHints(strict_priority=1))
    desk.offer(gold, strict)
    assert desk.drain()[1:] == [strict, gold]


def test_classes_share_by_weight(desk_of: Any) -> None:
    desk = desk_of(router_classes={"gold": 512.0, "bronze": 128.0})
    make = desk.fleet.request
    desk.offer(make(tokens(0, 10)))
    for name in ("bronze", "gold"):
        hints = RoutingHints(service_class=name)
        desk.offer(*(make(tokens(i, 100), arrival=float(i), hints=hints) for i in range(1, 401)))
    first = Counter(request.hints.service_class for request in desk.drain()[1:321])
    assert first == {"gold": 256, "bronze": 64}


def test_a_class_pays_by_the_token(desk_of: Any) -> None:
    desk = desk_of(router_class_by="header:X-Team", router_classes={"long": 1.0, "short": 1.0})
    make = desk.fleet.request
    desk.offer(make(tokens(0, 10)))
    for team, length in (("long", 400), ("short", 100)):
        desk.offer(*(make(tokens(i, length), headers={"x-team": team}) for i in range(1, 101)))
    first = Counter(request.headers["x-team"] for request in desk.drain()[1:51])
    assert first == {"long": 10, "short": 40}


def test_tenants_share_evenly_and_an_idle_one_saves_nothing_up(desk_of: Any) -> None:
    desk = desk_of(router_class_by="tenant")
    make = desk.fleet.request

    def ask(tenant: str, count: int) -> list[RouteRequest]:
        return [make(tokens(i, 100), hints=RoutingHints(tenant=tenant)) for i in range(count)]

    desk.offer(*ask("a", 41))
    for _ in range(20):
        desk.answer()
    desk.offer(*ask("b", 20))
    first = [request.hints.tenant for request in desk.drain()][1:21]
    assert Counter(first) == {"a": 10, "b": 10}


def test_a_full_queue_refuses_and_says_when_to_come_back(desk_of: Any) -> None:
    desk = desk_of(router_queue_limit=2)
    make = desk.fleet.request
    desk.offer(make(tokens(0, 10)))
    requests = [make(tokens(i, 10)) for i in range(1, 5)]
    decisions = desk.fleet.router.select(requests, desk.fleet.workers)
    assert kinds(decisions) == ["Hold", "Hold", "Reject", "Reject"]
    assert isinstance(decisions[2].error, Overloaded)
    assert (decisions[2].error.status, decisions[2].error.retry_after) == (503, 1)
    assert desk.fleet.router.state()["waiting"] == 2
    desk.fleet.router.dropped(requests[0])  # its client went away
    assert kinds(desk.fleet.router.select([requests[1], requests[3]], desk.fleet.workers)) == ["Hold", "Hold"]


def test_a_request_that_cannot_go_does_not_stop_those_that_can(make_fleet: Any) -> None:
    fleet = make_fleet(2, router_queue_threshold=0)
    fleet.send(tokens(0, 500), pinned=1)
    pinned, free = fleet.request(tokens(1, 10), pinned=1), fleet.request(tokens(2, 10))
    assert kinds(fleet.router.select([pinned, free], fleet.workers)) == ["Hold", "Route"]


@pytest.mark.parametrize(
    "thresholds",
    [
        {"active_prefill_tokens_threshold": 500},
        {"active_prefill_tokens_threshold_frac": 0.5},
        {"active_decode_blocks_threshold": 0.03},  # of 16,000 tokens
    ],
)
def test_busy_workers_are_passed_over_and_if_all_are_requests_get_503(make_fleet: Any, thresholds: dict[str, Any]) -> None:
    fleet = make_fleet(2, **thresholds)
    first = fleet.send(tokens(0, 500))
    second = fleet.send(tokens(1, 500), pinned=None)
    assert {first[1].worker_id, second[1].worker_id} == {1, 2}
    (refused,) = fleet.router.select([fleet.request(tokens(2, 5))], fleet.workers)
    assert isinstance(refused, Reject)
    assert (refused.error.status, refused.error.code, refused.error.retry_after) == (503, "overloaded", 1)
    fleet.router.finished(first[0], first[1].worker_id, "cancelled")
    assert fleet.send(tokens(3, 5))[1].worker_id == first[1].worker_id


def test_or_they_wait(make_fleet: Any) -> None:
    fleet = make_fleet(1, active_prefill_tokens_threshold=500, router_when_busy="hold")
    request, route = fleet.send(tokens(0, 500))
    waiting = fleet.request(tokens(1, 5))
    assert fleet.router.select([waiting], fleet.workers) == [HELD]
    fleet.router.first_token(request, route.worker_id)
    assert kinds(fleet.router.select([waiting], fleet.workers)) == ["Route"]


def test_a_worker_is_busy_only_if_all_of_its_ranks_are(make_fleet: Any) -> None:
    fleet = make_fleet(1, ranks=2, active_prefill_tokens_threshold=500)
    fleet.send(tokens(0, 600))
    fleet.send(tokens(1, 600))
    assert kinds(fleet.router.select([fleet.request(tokens(2, 5))], fleet.workers)) == ["Reject"]


def test_thresholds_change_while_the_router_runs(make_fleet: Any) -> None:
    fleet = make_fleet(1)
    assert fleet.router.busy_thresholds() == BusyThresholds()
    fleet.send(tokens(0, 600))
    fleet.router.set_busy_thresholds(BusyThresholds(active_prefill_tokens_threshold=500))
    assert kinds(fleet.router.select([fleet.request(tokens(1, 5))], fleet.workers)) == ["Reject"]
    fleet.router.set_busy_thresholds(BusyThresholds())
    assert fleet.send(tokens(1, 5))


def test_required_taints_choose_and_their_absence_is_named(make_fleet: Any) -> None:
    fleet = make_fleet(2)
    fleet.join(7, taints=("h200", "eu"))
    hints = RoutingHints(required_taints=frozenset({"h200"}))
    assert {fleet.serve(tokens(i, 100), hints=hints).worker_id for i in range(5)} == {7}
    hints = RoutingHints(required_taints=frozenset({"h200", "us"}))
    (refused,) = fleet.router.select([fleet.request(tokens(9, 100), hints=hints)], fleet.workers)
    assert isinstance(refused, Reject)
    assert isinstance(refused.error, NoInstances)
    assert "h200, us" in refused.error.message


def test_a_rank_that_no_worker_has_is_the_clients_mistake(make_fleet: Any) -> None:
    fleet = make_fleet(2)
    (refused,) = fleet.router.select([fleet.request(tokens(9, 100), hints=RoutingHints(dp_rank=3))], fleet.workers)
    assert isinstance(refused, Reject)
    assert isinstance(refused.error, InvalidRequest)
