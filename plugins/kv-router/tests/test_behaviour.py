"""What users would complain of, and does not happen."""

from __future__ import annotations

import random
from collections import Counter, deque
from typing import Any

import pytest

from dynamo_core.contracts import KvStored, Route, RouteRequest
from dynamo_core.kv import sequence_hashes

SIZE = 16


class Traffic:
    """Requests that arrive evenly, each answered after the time that its prompt takes on its worker, one prompt after another."""

    def __init__(self, fleet: Any, *, token_ms: float = 0.05, stay: float = 2.0) -> None:
        self.fleet = fleet
        self.sent: list[int] = []
        self._token = token_ms / 1000
        self._stay = stay
        self._free: dict[int, float] = {}
        self._prompts: deque[tuple[float, RouteRequest, int]] = deque()
        self._streams: deque[tuple[float, RouteRequest, int]] = deque()

    def arrive(self, tokens: list[int], after: float) -> Route:
        self.pass_time(after)
        request, route = self.fleet.send(tokens)
        self.sent.append(route.worker_id)
        begins = max(self.fleet.now, self._free.get(route.worker_id, 0.0))
        done = begins + self._token * (len(tokens) - SIZE * route.overlap_blocks) + 0.005
        self._free[route.worker_id] = done
        self._prompts.append((done, request, route.worker_id))
        return route

    def pass_time(self, seconds: float) -> None:
        until = self.fleet.now + seconds
        for done, request, worker in sorted(self._prompts, key=lambda prompt: prompt[0]):
            if done <= until and worker in self.fleet.workers:
                self.fleet.now = max(self.fleet.now, done)
                self.fleet.router.first_token(request, worker)
                self.fleet.tell(worker, KvStored(tuple(sequence_hashes(request.token_ids, SIZE))))
                self._streams.append((done + self._stay, request, worker))
        self._prompts = deque(prompt for prompt in self._prompts if prompt[0] > until)
        while self._streams and self._streams[0][0] <= until:
            _, request, worker = self._streams.popleft()
            self.fleet.router.finished(request, worker, "completed")
        self.fleet.now = until

    def lose(self, worker: int) -> None:
        self.fleet.leave(worker)
        for queue in (self._prompts, self._streams):
            for entry in [entry for entry in queue if entry[2] == worker]:
                queue.remove(entry)
                self.fleet.router.finished(entry[1], worker, "failed")


def prompt(lots: random.Random, length: int, prefix: list[int] | None = None) -> list[int]:
    return [*(prefix or []), *(lots.randrange(32_000) for _ in range(length))]


def test_one_request_at_a_time_that_nobody_has_seen_uses_all_workers(make_fleet: Any) -> None:
    fleet, lots = make_fleet(4), random.Random(1)
    used = Counter(fleet.serve(prompt(lots, 500)).worker_id for _ in range(40))
    assert used == {1: 10, 2: 10, 3: 10, 4: 10}


def test_one_hot_prefix_does_not_overload_one_worker(make_fleet: Any) -> None:
    """Every prompt begins alike, and together they are more than one worker can compute."""
    lots = random.Random(2)
    hot = prompt(lots, 1600)
    traffic = Traffic(make_fleet(4))
    for _ in range(400):
        traffic.arrive(prompt(lots, 400, hot), 0.01)  # 20 ms of work at least, every 10 ms
    late = Counter(traffic.sent[200:])
    assert len(late) == 4
    assert max(late.values()) < 1.5 * 50


@pytest.mark.parametrize("every", [0.01, 0.1, 0.5])
@pytest.mark.parametrize("tokens", [30, 300])
def test_workers_much_slower_than_believed_share_what_arrives_before_their_first_tokens(
    make_fleet: Any, every: float, tokens: int
) -> None:
    """An engine that compiles at its first prompt, or steps that take seconds: whom the last one went to is no less late."""
    lots = random.Random(8)
    common, fleet = prompt(lots, 64), make_fleet(3)
    for _ in range(120):
        fleet.send(prompt(lots, tokens, common))
        fleet.now += every
    loads = [worker["requests"] for worker in fleet.router.state()["workers"].values()]
    assert sum(loads) == 120
    assert min(loads) >= 36


def test_a_worker_that_hangs_gets_nothing_while_another_serves_and_slows_nobodys_belief(make_fleet: Any) -> None:
    lots, fleet = random.Random(9), make_fleet(2)
    for _ in range(20):
        fleet.serve(prompt(lots, 500))
    _, route = fleet.send(prompt(lots, 500))
    served = Counter(fleet.serve(prompt(lots, 500)).worker_id for _ in range(50))
    assert served == {3 - route.worker_id: 50}
    believed = fleet.router.state()["prefill"]
    fleet.send(prompt(lots, 500))  # the healthy one is at work
    pinned = fleet.request(prompt(lots, 500))
    fleet.router.select([pinned], {route.worker_id: fleet.workers[route.worker_id]})
    assert fleet.router.state()["prefill"] == believed, "one worker's lateness is its own"
    assert fleet.send(prompt(lots, 500))[1].worker_id != route.worker_id


def test_workers_that_are_busy_and_in_time_are_not_doubted(make_fleet: Any) -> None:
    """Steps of 20 to 60 ms that compute a few prompts each, on two workers that never rest."""
    lots, fleet = random.Random(10), make_fleet(2)
    waiting: dict[int, list[RouteRequest]] = {1: [], 2: []}
    believed = []
    for step in range(400):
        request, route = fleet.send(prompt(lots, lots.choice((40, 60, 400))))
        waiting[route.worker_id].append(request)
        fleet.now += lots.uniform(0.005, 0.015)
        worker = 1 + step % 2
        if step % 4 < 2:
            for done in waiting[worker][: lots.randint(1, 3)]:
                waiting[worker].remove(done)
                fleet.router.first_token(done, worker)
                fleet.router.finished(done, worker, "completed")
        if step >= 50:
            believed.append(fleet.router.state()["prefill"]["token_ms"])
    assert max(believed) < 0.1, "it is 0.033 nearly all the time"


def test_what_is_taken_from_workers_that_were_doubted_leaves_no_trace(make_fleet: Any) -> None:
    lots, fleet = random.Random(11), make_fleet(2)
    sent = []
    for _ in range(60):
        sent.append(fleet.send(prompt(lots, 300)))
        fleet.now += 0.2
    late = fleet.router.state()["workers"]
    for request, route in sent[2:]:
        fleet.router.finished(request, route.worker_id, "cancelled")
    for worker, account in fleet.router.state()["workers"].items():
        assert account["requests"] == 1
        assert account["wait_ms"] < late[worker]["wait_ms"]
    request, route = sent[0]
    fleet.router.first_token(request, route.worker_id)
    assert fleet.router.state()["prefill"]["token_ms"] < 1, "a sign of life ends the doubt"
    assert fleet.router.state()["workers"][route.worker_id]["wait_ms"] == 0


def test_but_a_worker_that_can_do_it_alone_keeps_what_it_has(make_fleet: Any) -> None:
    lots = random.Random(3)
    hot = prompt(lots, 1600)
    traffic = Traffic(make_fleet(4), stay=0.1)
    for _ in range(50):
        traffic.arrive(prompt(lots, 40, hot), 0.5)
    assert len(set(traffic.sent)) == 1


def test_a_worker_that_joins_gets_its_share_within_seconds(make_fleet: Any) -> None:
    lots = random.Random(4)
    families = [prompt(lots, 1200) for _ in range(12)]
    traffic = Traffic(make_fleet(3))
    for _ in range(300):
        traffic.arrive(prompt(lots, 600, lots.choice(families)), 0.02)
    traffic.fleet.join(9)
    first = len(traffic.sent)
    for _ in range(150):  # three seconds
        traffic.arrive(prompt(lots, 600, lots.choice(families)), 0.02)
    assert 9 in traffic.sent[first : first + 25]
    assert Counter(traffic.sent[first:])[9] >= 0.6 * 150 / 4


def test_a_worker_that_leaves_costs_its_cache_and_nothing_else(make_fleet: Any) -> None:
    lots = random.Random(5)
    families = {worker: prompt(lots, 1600) for worker in (1, 2, 3, 4)}
    fleet = make_fleet(4)
    for worker, family in families.items():
        fleet.tell(worker, KvStored(tuple(sequence_hashes(family, SIZE))))
    traffic = Traffic(fleet)
    for worker, family in families.items():
        assert traffic.arrive(prompt(lots, 10, family), 0.1).worker_id == worker
    traffic.lose(3)
    for worker, family in families.items():
        route = traffic.arrive(prompt(lots, 10, family), 0.1)
        assert route.overlap_blocks == (0 if worker == 3 else 100)
        assert (route.worker_id == worker) == (worker != 3)
    assert 3 not in traffic.sent[4:]


def test_a_worker_with_another_block_size_is_named_and_routing_goes_on(make_fleet: Any, caplog: pytest.LogCaptureFixture) -> None:
    fleet = make_fleet(2)
    fleet.join(9, block_size=64)
    assert "worker 9 has KV blocks of 64 tokens and others of model m have 16" in caplog.text
    lots = random.Random(6)
    liar = prompt(lots, 640)
    fleet.tell(9, KvStored(tuple(sequence_hashes(liar, 64))))
    assert fleet.serve(liar).overlap_blocks == 0
    assert {fleet.serve(prompt(lots, 300)).worker_id for _ in range(6)} == {1, 2, 9}


def test_a_worker_that_claims_blocks_that_it_never_gives_up_stays_bounded(make_fleet: Any) -> None:
    fleet, lots = make_fleet(2, router_max_tree_size=500), random.Random(7)
    for _ in range(100):
        fleet.tell(1, KvStored(tuple(lots.randrange(2**64) for _ in range(50))))
    assert fleet.router.state()["workers"][1]["blocks"] <= 500


def test_events_of_ranks_that_a_worker_does_not_have_are_ignored(make_fleet: Any) -> None:
    fleet = make_fleet(1)
    fleet.tell(1, KvStored((1, 2, 3)), rank=4)
    fleet.router.kv_lost(1, 4)
    assert fleet.router.state()["blocks"] == 0
