from __future__ import annotations

from collections import Counter
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynamo_core.contracts import (
    Hold,
    KvCleared,
    KvRemoved,
    KvStored,
    ModelCard,
    Route,
    RouterContext,
    RouteRequest,
    WorkerView,
)
from dynamo_core.kv import sequence_hashes
from dynamo_kv_router import dynamo_config, dynamo_routers
from dynamo_kv_router.router import KvRouter

SIZE = 16
PROMPT = list(range(640))
HASHES = tuple(sequence_hashes(PROMPT, SIZE))


def test_the_worker_with_the_prefix_is_chosen(fleet: Any) -> None:
    fleet.tell(3, KvStored(HASHES))
    route = fleet.serve(PROMPT)
    assert (route.worker_id, route.overlap_blocks) == (3, 40)


def test_the_longer_prefix_wins(fleet: Any) -> None:
    fleet.tell(2, KvStored(HASHES[:10]))
    fleet.tell(4, KvStored(HASHES[:30]))
    assert fleet.serve(PROMPT).worker_id == 4


def test_one_request_after_another_uses_every_worker(fleet: Any) -> None:
    used = Counter(fleet.serve(range(1000 * i, 1000 * i + 600)).worker_id for i in range(12))
    assert used == {1: 3, 2: 3, 3: 3, 4: 3}


def test_idle_workers_with_the_same_prefix_take_turns(fleet: Any) -> None:
    for worker in fleet.workers:
        fleet.tell(worker, KvStored(HASHES[:4]))
    used = Counter(fleet.serve([*PROMPT[:64], *range(1000 * i, 1000 * i + 600)]).worker_id for i in range(1, 13))
    assert used == {1: 3, 2: 3, 3: 3, 4: 3}


def test_a_full_cache_is_avoided_even_if_it_has_the_prefix(fleet: Any) -> None:
    fleet.serve(range(5000, 5100))  # from here on the router knows how long requests stay
    fleet.tell(1, KvStored(HASHES))
    request = fleet.request(range(20_000, 20_000 + 15_900), pinned=1)
    fleet.router.select([request], fleet.workers)
    fleet.now += 0.4
    fleet.router.first_token(request, 1)
    fleet.now += 60  # long past its youth
    assert fleet.serve(PROMPT).worker_id != 1


def test_load_outweighs_a_small_overlap(fleet: Any) -> None:
    fleet.tell(1, KvStored(HASHES[:2]))
    for i in range(8):
        fleet.send(range(10_000 * (i + 1), 10_000 * (i + 1) + 4000), pinned=1)
    route = fleet.send(PROMPT)[1]
    assert route.worker_id != 1


def test_a_hanging_worker_gets_nothing_more(fleet: Any) -> None:
    stuck, route = fleet.send(PROMPT)
    fleet.now += 60
    others = {fleet.serve(range(1000 * i, 1000 * i + 600)).worker_id for i in range(1, 9)}
    assert others == {1, 2, 3, 4} - {route.worker_id}
    fleet.router.finished(stuck, route.worker_id, "failed")


def test_requests_of_one_turn_with_one_prefix_go_together(fleet: Any) -> None:
    requests = [fleet.request([*PROMPT, i]) for i in range(3)]
    decisions = fleet.router.select(requests, fleet.workers)
    assert len({d.worker_id for d in decisions if isinstance(d, Route)}) == 1
    assert [d.overlap_blocks for d in decisions if isinstance(d, Route)] == [0, 40, 40]


def test_different_requests_of_one_turn_are_spread_and_answered_in_order(fleet: Any) -> None:
    requests = [fleet.request(range(10_000 * i, 10_000 * i + 500 * i)) for i in range(1, 5)]
    decisions = fleet.router.select(requests, fleet.workers)
    assert sorted(d.worker_id for d in decisions if isinstance(d, Route)) == [1, 2, 3, 4]
    assert isinstance(decisions[3], Route)
    assert decisions[3].worker_id == 1  # the longest was placed first


def test_the_promise_of_a_request_ends_with_it(fleet: Any) -> None:
    request, route = fleet.send(PROMPT)
    fleet.router.finished(request, route.worker_id, "failed")
    assert fleet.send(PROMPT)[1].overlap_blocks == 0


def test_removed_and_cleared_blocks_do_not_count(fleet: Any) -> None:
    fleet.tell(3, KvStored(HASHES))
    fleet.tell(3, KvRemoved(HASHES[20:]))
    assert fleet.serve(PROMPT).overlap_blocks == 20
    fleet.tell(3, KvCleared())
    assert fleet.serve(PROMPT).overlap_blocks == 0
    fleet.tell(3, KvStored(HASHES), KvRemoved(HASHES[5:], "host"))
    assert fleet.serve(PROMPT).overlap_blocks == 40
    fleet.router.kv_lost(3, 0)
    assert fleet.serve(PROMPT).overlap_blocks == 0


def test_faster_tiers_are_worth_more(fleet: Any) -> None:
    fleet.tell(1, KvStored(HASHES, "disk"))
    assert fleet.serve(PROMPT).worker_id == 1
    fleet.tell(2, KvStored(HASHES, "host"))
    assert fleet.serve(PROMPT).worker_id == 2
    fleet.tell(3, KvStored(HASHES))
    assert fleet.serve(PROMPT).worker_id == 3


def test_ranks_of_a_worker_are_kept_apart(make_fleet: Any) -> None:
    fleet = make_fleet(ranks=2)
    fleet.tell(3, KvStored(HASHES[:10]), rank=0)
    fleet.tell(3, KvStored(HASHES[:30]), rank=1)
    assert fleet.serve(PROMPT).overlap_blocks == 30
    fleet.router.kv_lost(3, 1)
    assert fleet.serve(PROMPT).overlap_blocks == 10


def test_tenants_and_adapters_do_not_match(fleet: Any) -> None:
    fleet.tell(3, KvStored(tuple(sequence_hashes(PROMPT, SIZE, lora="a", salt="t"))))
    assert fleet.serve(PROMPT).overlap_blocks == 0
    assert fleet.serve(PROMPT, lora="a").overlap_blocks == 0
    assert fleet.serve(PROMPT, lora="a", cache_salt="t").overlap_blocks == 40


def test_pinned_and_excluded_workers_are_respected(fleet: Any) -> None:
    fleet.tell(3, KvStored(HASHES))
    assert fleet.serve(PROMPT, pinned=2).worker_id == 2
    assert fleet.serve(PROMPT, excluded=frozenset({3})).worker_id != 3
    assert fleet.serve(PROMPT, pinned=3, excluded=frozenset({3})).worker_id != 3
    assert fleet.serve(PROMPT, pinned=99).worker_id == 3
    (decision,) = fleet.router.select([fleet.request(PROMPT, excluded=frozenset(fleet.workers))], fleet.workers)
    assert isinstance(decision, Hold)


def test_only_offered_workers_are_chosen(fleet: Any) -> None:
    fleet.tell(3, KvStored(HASHES))
    offered = {i: fleet.workers[i] for i in (1, 2)}
    (decision,) = fleet.router.select([fleet.request(PROMPT)], offered)
    assert isinstance(decision, Route)
    assert decision.worker_id in offered
    assert fleet.router.select([fleet.request(PROMPT)], {}) == [Hold(reason="no worker is left for this request")]


def test_workers_that_nobody_announced_are_taken_in(fleet: Any) -> None:
    fleet.workers[9] = WorkerView(9, fleet.workers[1].card)
    assert {fleet.serve(range(1000 * i, 1000 * i + 600)).worker_id for i in range(5)} == {1, 2, 3, 4, 9}


def test_a_removed_worker_takes_all_it_had_with_it(fleet: Any) -> None:
    fleet.tell(3, KvStored(HASHES))
    request, route = fleet.send(PROMPT)
    assert route.worker_id == 3
    worker = fleet.workers.pop(3)
    fleet.router.worker_removed(3)
    fleet.router.worker_removed(3)
    fleet.tell(3, KvStored(HASHES))
    assert fleet.serve(PROMPT).overlap_blocks == 0
    fleet.router.first_token(request, 3)
    fleet.router.finished(request, 3, "migrated")
    fleet.router.worker_added(worker)
    state = fleet.router.state()
    assert (state["blocks"], state["requests"], state["workers"][3]["requests"]) == (0, 0, 0)


def test_a_migrated_request_counts_on_its_new_worker(fleet: Any) -> None:
    request, route = fleet.send(PROMPT)
    fleet.router.finished(request, route.worker_id, "migrated")
    request.excluded = frozenset({route.worker_id})
    (second,) = fleet.router.select([request], fleet.workers)
    assert isinstance(second, Route)
    state = fleet.router.state()["workers"]
    assert (state[route.worker_id]["requests"], state[second.worker_id]["requests"]) == (0, 1)


def test_load_is_released_exactly_once(fleet: Any) -> None:
    request, route = fleet.send(PROMPT)
    fleet.router.first_token(request, route.worker_id)
    fleet.router.first_token(request, route.worker_id)
    fleet.router.finished(request, 99, "failed")
    for _ in range(3):
        fleet.router.finished(request, route.worker_id, "completed")
    state = fleet.router.state()["workers"][route.worker_id]
    assert (state["requests"], state["prefilling"], state["prompt_tokens"], state["wait_ms"]) == (0, 0, 0, 0)


def test_without_kv_events_a_worker_is_believed_to_have_what_was_sent_to_it(make_fleet: Any) -> None:
    fleet = make_fleet(kv_events=False, router_ttl_secs=100)
    first = fleet.serve(PROMPT)
    again = fleet.serve([*PROMPT, 1])
    assert (again.worker_id, again.overlap_blocks) == (first.worker_id, 40)
    fleet.now += 90
    assert fleet.serve(PROMPT).overlap_blocks == 40
    fleet.now += 101
    assert fleet.serve(PROMPT).overlap_blocks == 0


def test_what_is_believed_is_bounded(make_fleet: Any) -> None:
    fleet = make_fleet(1, kv_events=False, router_max_tree_size=50, router_prune_target_ratio=0.8)
    fleet.serve(PROMPT)
    fleet.serve(range(5000, 5000 + 640))
    assert fleet.router.state()["workers"][1]["blocks"] == 40
    assert fleet.serve(PROMPT).overlap_blocks == 0


def test_events_are_not_listened_to_when_told_so(make_fleet: Any) -> None:
    fleet = make_fleet(use_kv_events=False)
    fleet.tell(3, KvStored(HASHES))
    assert fleet.serve(PROMPT).overlap_blocks == 0
    assert fleet.serve(PROMPT).overlap_blocks == 40


def test_weight_0_looks_at_load_alone(make_fleet: Any) -> None:
    fleet = make_fleet(overlap_score_weight=0)
    fleet.tell(1, KvStored(HASHES))
    fleet.send(range(9000, 13_000), pinned=1)
    assert fleet.send(PROMPT)[1].worker_id != 1


def test_temperature_draws_lots_and_repeats_them_with_the_seed(make_fleet: Any) -> None:
    def picks() -> list[int]:
        fleet = make_fleet(router_temperature=1.0)
        fleet.tell(1, KvStored(HASHES))
        return [fleet.serve(PROMPT).worker_id for _ in range(60)]

    assert picks() == picks()
    assert Counter(picks()).most_common(1)[0][0] == 1
    assert len(set(picks())) == 4


def test_the_route_explains_itself(fleet: Any) -> None:
    fleet.tell(3, KvStored(HASHES))
    explain = fleet.send(PROMPT)[1].explain
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(explain)) == explain
    assert explain["best"][0]["worker"] == 3
    assert len(explain["best"]) == 3
    assert explain["cost_ms"] == explain["best"][0]["cost_ms"] < explain["best"][1]["cost_ms"]


def test_the_speed_of_prompts_is_learned(make_fleet: Any) -> None:
    fleet = make_fleet(1)
    for i in range(20):
        request, route = fleet.send(range(9000 * i, 9000 * i + 200 + 50 * i))
        fleet.now += 1.0 + 0.001 * len(request.token_ids)
        fleet.router.first_token(request, route.worker_id)
        fleet.now += 0.1
        fleet.router.finished(request, route.worker_id, "completed")
    prefill = fleet.router.state()["prefill"]
    assert prefill["token_ms"] == pytest.approx(1.0, rel=0.05)
    assert prefill["overhead_ms"] == pytest.approx(1000, rel=0.05)


def test_prompts_shorter_than_a_block_and_engines_without_blocks_are_fine(make_fleet: Any) -> None:
    fleet = make_fleet()
    fleet.serve([1])
    fleet.serve([])
    router = KvRouter(None, RouterContext(model="m", block_size=0, clock=lambda: 0.0))
    bare = {1: WorkerView(1, ModelCard(name="m", path=""))}
    assert isinstance(router.select([RouteRequest(id="a", token_ids=PROMPT)], bare)[0], Route)


def test_the_plugin_offers_its_router_and_its_configuration() -> None:
    (spec,) = dynamo_routers()
    assert (spec.name, spec.aliases, spec.needs_kv_events) == ("kv-router", ("kv",), False)
    with pytest.raises(msgspec.ValidationError, match="temperature"):
        msgspec.convert({"temperature": 1}, dynamo_config())


steps = st.lists(
    st.tuples(st.sampled_from(["send", "first", "end", "kill", "join", "wait"]), st.integers(0, 9), st.integers(1, 400)),
    max_size=60,
)


@settings(max_examples=100, deadline=None)
@given(steps, st.booleans())
def test_the_books_balance_whatever_happens(make_fleet: Any, story: list[tuple[str, int, int]], events: bool) -> None:
    fleet = make_fleet(3, kv_events=events)
    spare = dict(fleet.workers)
    running: list[tuple[RouteRequest, int]] = []
    for what, which, size in story:
        fleet.now += 0.001
        if what == "send":
            requests = [fleet.request(range(which * 100, which * 100 + size + i)) for i in range(1 + which % 3)]
            for request, decision in zip(requests, fleet.router.select(requests, fleet.workers), strict=True):
                assert isinstance(decision, Route) == bool(fleet.workers)
                if isinstance(decision, Route):
                    assert decision.worker_id in fleet.workers
                    running.append((request, decision.worker_id))
        elif what == "first" and running:
            fleet.router.first_token(*running[which % len(running)])
        elif what == "end" and running:
            fleet.router.finished(*running.pop(which % len(running)), "completed")
        elif what == "kill" and fleet.workers:
            worker = sorted(fleet.workers)[which % len(fleet.workers)]
            del fleet.workers[worker]
            fleet.router.worker_removed(worker)
            for request, on in [pair for pair in running if pair[1] == worker]:
                running.remove((request, on))
                fleet.router.finished(request, on, "failed")
        elif what == "join":
            fleet.workers[1 + which % 3] = spare[1 + which % 3]
            fleet.router.worker_added(spare[1 + which % 3])
        elif what == "wait":
            fleet.now += size
        state = fleet.router.state()["workers"]
        assert {i: s["requests"] for i, s in state.items()} == {i: sum(on == i for _, on in running) for i in fleet.workers}
        assert all(s["prompt_tokens"] == sum(len(r.token_ids) for r, on in running if on == i) for i, s in state.items())
    for request, worker in running:
        fleet.router.finished(request, worker, "cancelled")
    assert all(s["requests"] == s["prefilling"] == s["wait_ms"] == 0 for s in fleet.router.state()["workers"].values())


def test_the_same_story_gives_the_same_choices(make_fleet: Any) -> None:
    def tell() -> list[int]:
        fleet = make_fleet()
        return [fleet.send(range(100 * (i % 7), 100 * (i % 7) + 300 + i))[1].worker_id for i in range(50)]

    assert tell() == tell()
