"""Known answers: each time below follows from the timing model by hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest

from dynamo_core.builtins.round_robin import RoundRobin
from dynamo_core.contracts import Hold, KvStored, Reject, Route, RouteRequest, WorkerView
from dynamo_core.errors import Overloaded
from dynamo_core.kv.hashing import sequence_hashes
from dynamo_core.kv.timing import TimingModel
from dynamo_core.simulator import Change, Cluster, Simulation, Trace

Make = Callable[..., Trace]
SMALL = Cluster(workers=2, blocks=100, block_size=10)
TIMING = TimingModel()


def decode(*lengths: int) -> float:
    """One step that decodes sequences of these lengths."""
    return TIMING.decode_ms(sum(lengths), SMALL.capacity)


def test_one_request_takes_the_time_of_its_steps(trace: Make, scripted: Any) -> None:
    (log,) = Simulation(trace((5, 25, 3, (0, 1, 2))), SMALL, scripted).run().requests
    first = TIMING.prefill_ms(25)
    assert (log.at_ms, log.worker_id, log.reused_tokens) == (5, 1, 0)
    assert log.first_ms == pytest.approx(5 + first)
    assert log.end_ms == pytest.approx(5 + first + decode(26) + decode(27))


def test_a_request_waits_for_the_step_in_progress(trace: Make, scripted: Any) -> None:
    made = trace((0, 25, 3, (0, 1, 2)), (1, 15, 1, (3, 4)))
    one, two = Simulation(made, SMALL, scripted).run().requests
    second = TIMING.prefill_ms(25) + decode(26) + TIMING.prefill_ms(15)
    assert two.first_ms == two.end_ms == pytest.approx(second)
    assert one.end_ms == pytest.approx(second + decode(27))


def test_a_long_quiet_run_is_cut_where_a_request_arrives(trace: Make, scripted: Any) -> None:
    made = trace((0, 25, 60, (0, 1, 2)), (100, 15, 1, (3, 4)))
    _, two = Simulation(made, SMALL, scripted).run().requests
    now, length = TIMING.prefill_ms(25), 26
    while now < 100:
        now += decode(length)
        length += 1
    assert two.first_ms == pytest.approx(now + decode(length) + TIMING.prefill_ms(15))


def test_a_cached_prefix_is_reused_on_its_worker_only(trace: Make, scripted: Any) -> None:
    made = trace(
        (0, 40, 1, (0, 1, 2, 3)), (1000, 50, 1, (0, 1, 2, 3, 4)), (2000, 40, 1, (0, 1, 2, 3)), (3000, 40, 1, (0, 1, 2, 3))
    )
    targets = iter([1, 1, 2, 1])
    logs = Simulation(made, SMALL, lambda context: scripted(context, lambda _: Route(next(targets)))).run().requests
    assert [log.reused_tokens for log in logs] == [0, 40, 0, 39]
    assert logs[1].first_ms - 1000 == pytest.approx(TIMING.prefill_ms(10))
    assert logs[3].first_ms - 3000 == pytest.approx(TIMING.prefill_ms(1))


def test_the_router_hears_of_load_and_blocks_in_the_order_of_a_frontend(trace: Make, scripted: Any) -> None:
    routers: list[Any] = []

    def make(context: Any) -> Any:
        routers.append(scripted(context))
        return routers[0]

    made = trace((0, 25, 2, (0, 1, 2)), (0, 20, 1, (3, 4)))
    simulated = Simulation(made, SMALL, make).run()
    first = TIMING.prefill_ms(44)  # count x (mean end - mean start), rounded down: 2 x 22
    end = first + decode(26)
    expected = [
        ("select", 0, ["0", "1"]),
        ("first", first, "0", 1),
        ("first", first, "1", 1),
        ("completed", first, "1", 1),
        ("stored", first, 4, 1),
        ("completed", end, "0", 1),
    ]
    assert [(what, pytest.approx(at), *rest) for what, at, *rest in routers[0].heard] == expected
    assert simulated.end_ms == pytest.approx(end)
    stored = [event for batch in routers[0].batches for event in batch.events]
    assert all(isinstance(event, KvStored) for event in stored)
    assert list(stored[0].seq_hashes) == list(sequence_hashes(made.token_ids(made.requests[0]), 10))


def test_kv_events_come_late_when_told_to(trace: Make, scripted: Any) -> None:
    routers: list[Any] = []

    def make(context: Any) -> Any:
        routers.append(scripted(context))
        return routers[0]

    late = Cluster(workers=1, blocks=100, block_size=10, kv_event_delay_ms=50)
    Simulation(trace((0, 20, 1, (0, 1))), late, make).run()
    assert routers[0].heard[-1] == ("stored", pytest.approx(TIMING.prefill_ms(20) + 50), 2, 1)


def test_what_is_held_is_offered_again_after_its_time_and_when_requests_move_on(trace: Make, scripted: Any) -> None:
    offers: list[tuple[float, str]] = []

    def make(context: Any) -> Any:
        def decide(request: RouteRequest) -> Any:
            offers.append((context.clock() * 1000, request.id))
            if request.id == "0" or len(offers) >= 5:
                return Route(1)
            return Hold(retry_after=0.01) if len(offers) == 2 else Hold()

        return scripted(context, decide)

    simulated = Simulation(trace((0, 20, 2, (0, 1)), (0, 20, 1, (2, 3))), SMALL, make).run()
    first = TIMING.prefill_ms(20)
    times = [0, 0, 10, first, first + decode(21)]
    assert offers == [(pytest.approx(at), name) for at, name in zip(times, "01111", strict=True)]
    assert simulated.requests[1].routed_ms == pytest.approx(times[-1])
    assert simulated.requests[1].end_ms > times[-1]


def test_a_hold_without_end_fails_once_nothing_runs(trace: Make, scripted: Any) -> None:
    simulated = Simulation(trace((0, 20, 1, (0, 1))), SMALL, lambda c: scripted(c, lambda _: Hold())).run()
    assert simulated.requests[0].error == "the router holds requests although nothing runs"
    assert simulated.faults[0].times == 1


def test_a_router_that_errs_fails_those_requests_and_no_others(trace: Make, scripted: Any) -> None:
    def decide(request: RouteRequest) -> Any:
        if request.id == "2":
            raise ZeroDivisionError("oh")
        return {"0": Route(9), "1": "left", "3": Reject(Overloaded("full")), "4": Route(2)}[request.id]

    made = trace(*((float(i), 20, 1, (i,) * 2) for i in range(5)))
    simulated = Simulation(made, SMALL, lambda context: scripted(context, decide)).run()
    assert [log.error for log in simulated.requests] == [
        "the router chose worker 9, which does not exist",
        "the router answered 'left', which is no Route, Hold or Reject",
        "the router raised ZeroDivisionError('oh') in select",
        "the router rejected it: full",
        "",
    ]
    assert [log.end_ms >= 0 for log in simulated.requests] == [False] * 4 + [True]
    assert len(simulated.faults) == 3


def test_a_prompt_that_never_fits_fails_and_a_long_answer_is_cut(trace: Make, scripted: Any) -> None:
    made = trace((0, 1000, 5, range(100)), (0, 990, 50, range(100, 199)))
    too_long, cut = Simulation(made, SMALL, scripted).run().requests
    assert too_long.error == "its prompt of 1000 tokens does not fit into 1000"
    assert (cut.output_tokens, cut.end_ms > 0) == (10, True)


def test_workers_are_seen_with_what_the_frontend_has_on_them(trace: Make) -> None:
    seen: list[tuple[int, int]] = []

    class Looking:
        def __init__(self, context: Any) -> None:
            pass

        def select(self, requests: Sequence[RouteRequest], workers: Mapping[int, WorkerView]) -> Sequence[Route]:
            seen.append((workers[1].inflight, workers[1].inflight_tokens))
            assert workers[1].load is None
            assert (workers[1].card.block_size, workers[1].card.total_kv_blocks) == (10, 100)
            return [Route(1) for _ in requests]

    Simulation(trace((0, 20, 2, (0, 1)), (1, 30, 2, (2, 3, 4)), (900, 10, 1, (5,))), SMALL, Looking).run()
    assert seen == [(0, 0), (1, 20), (0, 0)]


def test_output_tokens_are_told_to_routers_that_ask_and_change_no_time(trace: Make, scripted: Any) -> None:
    class Counting(scripted):  # type: ignore[misc]
        def output_tokens(self, request: RouteRequest, worker_id: int, count: int) -> None:
            counts[request.id] = counts.get(request.id, 0) + count

    counts: dict[str, int] = {}
    made = trace((0, 25, 40, (0, 1, 2)), (100, 15, 1, (3, 4)), (110, 33, 17, (3, 4, 5, 6)))
    counted = Simulation(made, SMALL, Counting).run()
    assert counts == {"0": 40, "1": 1, "2": 17}
    plain = Simulation(made, SMALL, scripted).run()
    assert [log.end_ms for log in counted.requests] == [log.end_ms for log in plain.requests]


def test_the_same_run_twice_is_the_same(trace: Make) -> None:
    made = trace(*((i * 7.0, 20 + i % 30, 1 + i % 13, (0, *range(i, i + 5))) for i in range(60)))
    one, two = (Simulation(made, SMALL, lambda c: RoundRobin(None, c), spread_ms=5).run() for _ in range(2))
    assert one.requests == two.requests
    assert one.workers == two.workers
    assert {log.worker_id for log in one.requests} == {1, 2}
    assert sum(worker.computed_tokens for worker in one.workers) == sum(
        log.prompt_tokens - log.reused_tokens for log in one.requests
    )


def test_progress_is_told(trace: Make, scripted: Any) -> None:
    told: list[int] = []
    Simulation(trace(*((0.0, 10, 1, (i,)) for i in range(200))), SMALL, scripted, progress=told.append).run()
    assert told == [64, 128, 192]


def test_workers_join_empty_and_leave_once_their_work_is_done(trace: Make, scripted: Any) -> None:
    class Moving(scripted):  # type: ignore[misc]
        def worker_added(self, worker: WorkerView) -> None:
            self.heard.append(("added", self._now(), worker.id))

        def worker_removed(self, worker_id: int) -> None:
            self.heard.append(("removed", self._now(), worker_id))

        def select(self, requests: Sequence[RouteRequest], workers: Mapping[int, WorkerView]) -> Sequence[Route]:
            offered.append(sorted(workers))
            return [Route(max(workers)) for _ in requests]

    offered: list[list[int]] = []
    routers: list[Any] = []

    def make(context: Any) -> Any:
        routers.append(Moving(context))
        return routers[0]

    cluster = Cluster(workers=1, blocks=100, block_size=10, changes=(Change(10, 2), Change(11, -2), Change(99_999, 1)))
    made = trace((0, 40, 60, range(4)), (10, 40, 2, range(4)), (20, 40, 1, range(4)), (900, 40, 1, range(4)))
    simulated = Simulation(made, cluster, make).run()
    heard = [event for event in routers[0].heard if event[0] in ("added", "removed")]
    assert heard == [("added", 0, 1), ("added", 10, 2), ("added", 10, 3), ("removed", 11, 1), ("removed", 11, 2)]
    assert offered == [[1], [1, 2, 3], [3], [3]]
    assert [(log.worker_id, log.reused_tokens) for log in simulated.requests] == [(1, 0), (3, 0), (3, 39), (3, 39)]
    assert simulated.requests[0].end_ms > 11
    assert simulated.end_ms < 1000
    stored = [(at, worker) for what, at, *rest in routers[0].heard if what == "stored" for worker in rest[1:]]
    assert {worker for at, worker in stored if at >= 11} == {3}


def test_a_router_that_chooses_a_worker_that_left_fails_that_request(trace: Make, scripted: Any) -> None:
    cluster = Cluster(workers=2, blocks=100, block_size=10, changes=(Change(5, -1),))
    one, two = Simulation(trace((0, 20, 1, (0, 1)), (10, 20, 1, (0, 1))), cluster, scripted).run().requests
    assert (one.error, two.error) == ("", "the router chose worker 1, which does not exist")
