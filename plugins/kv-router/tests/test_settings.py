"""Each setting by its effect."""

from __future__ import annotations

from collections import Counter
from typing import Any

import msgspec
import pytest

from dynamo_core.contracts import EngineLoad, Hold, KvStored, Route, RoutingHints
from dynamo_core.kv import sequence_hashes
from dynamo_kv_router.config import KvRouterConfig

SIZE = 16
PROMPT = list(range(640))
HASHES = tuple(sequence_hashes(PROMPT, SIZE))


def tokens(which: int, count: int) -> range:
    """A prompt that shares nothing with others."""
    return range(100_000 * which, 100_000 * which + count)


@pytest.mark.parametrize(
    "wrong",
    [
        {"overlap_score_weight": -1.0},
        {"router_kv_overlap_score_credit": -0.1},
        {"router_host_cache_hit_weight": -0.5},
        {"router_disk_cache_hit_weight": 1.5},
        {"router_decode_active_request_weight": -1.0},
        {"router_temperature": -1.0},
        {"router_ttl_secs": 0.0},
        {"router_max_tree_size": 0},
        {"router_prune_target_ratio": 2.0},
        {"router_event_threads": 0},
        {"active_decode_blocks_threshold": -1.0},
        {"active_prefill_tokens_threshold": -1},
        {"router_classes": {"gold": 0.0}},
        {"router_classes": {"gold": -2.0}},
        {"router_queue_policy": "sjf"},
        {"router_class_by": "colour"},
    ],
)
def test_what_makes_no_sense_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(wrong, KvRouterConfig)


def test_the_weight_decides_between_a_cached_prompt_and_an_idle_worker(make_fleet: Any) -> None:
    def chosen(weight: float) -> int:
        fleet = make_fleet(2, overlap_score_weight=weight)
        fleet.tell(1, KvStored(HASHES))
        fleet.send(tokens(1, 1200), pinned=1)
        return int(fleet.send(PROMPT)[1].worker_id)

    assert (chosen(0.0), chosen(0.1), chosen(1.0)) == (2, 2, 1)


def test_a_credit_below_1_makes_cached_blocks_worth_less(make_fleet: Any) -> None:
    def chosen(**config: Any) -> int:
        fleet = make_fleet(2, **config)
        fleet.tell(1, KvStored(HASHES))
        fleet.send(tokens(1, 1200), pinned=1)
        return int(fleet.send(PROMPT)[1].worker_id)

    assert chosen() == chosen(router_kv_overlap_score_credit=0.9) == 1
    assert chosen(router_kv_overlap_score_credit=0.1) == 2


def test_the_credit_of_a_worker_that_others_wait_for_fades(make_fleet: Any) -> None:
    def chosen(decay: float) -> int:
        fleet = make_fleet(2, router_kv_overlap_score_credit_decay=decay)
        fleet.tell(1, KvStored(HASHES))
        fleet.send(tokens(1, 1200), pinned=1)
        return int(fleet.send(PROMPT)[1].worker_id)

    assert (chosen(0.0), chosen(10.0)) == (1, 2)


def test_the_weights_of_slower_tiers_decide_between_them(make_fleet: Any) -> None:
    def chosen(**config: Any) -> int:
        fleet = make_fleet(2, **config)
        fleet.tell(1, KvStored(HASHES[:25], "host"))
        fleet.tell(2, KvStored(HASHES, "disk"))
        return int(fleet.send(PROMPT)[1].worker_id)

    assert chosen() == 1
    assert chosen(router_host_cache_hit_weight=0.1) == 2
    assert chosen(router_disk_cache_hit_weight=0.9) == 2


def test_a_running_request_may_weigh_more_than_its_tokens(make_fleet: Any) -> None:
    def chosen(weight: float) -> int:
        fleet = make_fleet(2, overlap_score_weight=0, router_decode_active_request_weight=weight)
        for request, route in [fleet.send(tokens(i, 10), pinned=1) for i in range(3)] + [fleet.send(tokens(9, 500), pinned=2)]:
            fleet.now += 1
            fleet.router.first_token(request, route.worker_id)
        return int(fleet.send(PROMPT)[1].worker_id)

    assert (chosen(0.0), chosen(100.0)) == (1, 2)


def test_assumed_blocks_leave_by_time_or_by_capacity(make_fleet: Any) -> None:
    by_time = make_fleet(1, kv_events=False, router_ttl_secs=50)
    by_capacity = make_fleet(1, kv_events=False, router_ttl_secs=50, router_approximate_cache_policy="lru")
    for fleet in (by_time, by_capacity):
        fleet.serve(PROMPT)
        fleet.now += 60
    assert by_time.serve(PROMPT).overlap_blocks == 0
    assert by_capacity.serve(PROMPT).overlap_blocks == 40
    by_capacity.serve(tokens(7, 990 * SIZE))  # of the worker's 1000 blocks
    assert by_capacity.serve(PROMPT).overlap_blocks == 0


def test_a_prediction_outlives_the_first_token_for_its_time(make_fleet: Any) -> None:
    def overlap(after: float, seconds: float) -> int:
        fleet = make_fleet(1, router_predicted_ttl_secs=seconds)
        fleet.serve(PROMPT)
        fleet.now += after
        return int(fleet.serve(PROMPT).overlap_blocks)

    assert overlap(0.0, 0.0) == 0
    assert overlap(1.0, 5.0) == 40
    assert overlap(6.0, 5.0) == 0


def test_event_threads_change_nothing(make_fleet: Any) -> None:
    def story(threads: int) -> list[int]:
        fleet = make_fleet(router_event_threads=threads)
        return [fleet.send(tokens(i % 5, 300 + i))[1].worker_id for i in range(20)]

    assert story(1) == story(16)


def test_what_runs_need_not_be_counted(make_fleet: Any) -> None:
    def chosen(**config: Any) -> int:
        fleet = make_fleet(2, overlap_score_weight=0, **config)
        request, _ = fleet.send(tokens(1, 5000), pinned=1)
        fleet.now += 1
        fleet.router.first_token(request, 1)
        fleet.serve(tokens(2, 100), pinned=2)  # so that it is the turn of 1
        return int(fleet.send(PROMPT)[1].worker_id)

    assert (chosen(), chosen(router_track_active_blocks=False)) == (2, 1)


def test_prompts_that_wait_need_not_be_counted(make_fleet: Any) -> None:
    def chosen(**config: Any) -> int:
        fleet = make_fleet(2, overlap_score_weight=0, **config)
        fleet.send(tokens(1, 900), pinned=1)
        request, _ = fleet.send(tokens(2, 1000), pinned=2)
        fleet.now += 1
        fleet.router.first_token(request, 2)
        return int(fleet.send(PROMPT)[1].worker_id)

    assert (chosen(), chosen(router_track_prefill_tokens=False)) == (2, 1)


def test_expected_outputs_are_counted_where_asked_for(make_fleet: Any) -> None:
    def held(hints: RoutingHints | None = None, **config: Any) -> int:
        fleet = make_fleet(1, **config)
        fields = {} if hints is None else {"hints": hints}
        fleet.send(tokens(1, 100), max_tokens=300, **fields)
        return int(fleet.router.state()["workers"][1]["prompt_tokens"])

    assert held(RoutingHints(expected_output=200)) == 100
    assert held(RoutingHints(expected_output=200), router_track_output_blocks=True) == 300
    assert held(RoutingHints(expected_output=900), router_track_output_blocks=True) == 400
    assert held(router_track_output_blocks=True) == 100


def test_the_length_of_answers_is_learned_and_outgrown(make_fleet: Any) -> None:
    assert not hasattr(make_fleet().router, "output_tokens")
    fleet = make_fleet(1, router_track_output_blocks=True)

    def held() -> int:
        return int(fleet.router.state()["workers"][1]["prompt_tokens"])

    for _ in range(5):
        request, _ = fleet.send(tokens(1, 100))
        fleet.router.first_token(request, 1)
        fleet.router.output_tokens(request, 1, 80)
        fleet.router.finished(request, 1, "completed")
        assert held() == 0
    request, _ = fleet.send(tokens(1, 100))
    assert held() == 180
    fleet.router.first_token(request, 1)
    fleet.router.output_tokens(request, 1, 80)
    assert held() == 180
    fleet.router.output_tokens(request, 1, 1)
    assert held() == 196
    fleet.router.finished(request, 1, "cancelled")
    assert held() == 0


def test_requests_wait_for_the_first_workers(make_fleet: Any) -> None:
    fleet = make_fleet(2, router_min_initial_workers=3)
    assert isinstance(fleet.router.select([fleet.request(PROMPT)], fleet.workers)[0], Hold)
    fleet.join(3)
    assert fleet.send(PROMPT)
    fleet.leave(3)
    assert fleet.send(PROMPT)


def test_a_workers_own_reading_can_make_it_busy(make_fleet: Any) -> None:
    fleet = make_fleet(2, active_decode_blocks_threshold=0.5)
    fleet.workers[1].load = EngineLoad(kv_used_blocks=600, kv_total_blocks=1000)
    assert Counter(fleet.serve(tokens(i, 100)).worker_id for i in range(4)) == {2: 4}


def test_preferred_taints_make_cheaper_or_dearer(make_fleet: Any) -> None:
    fleet = make_fleet(2)
    fleet.join(7, taints=("fast",))
    fast = {fleet.serve(tokens(i, 200), hints=RoutingHints(preferred_taints={"fast": 1.0})).worker_id for i in range(5)}
    slow = {fleet.serve(tokens(i, 200), hints=RoutingHints(preferred_taints={"fast": -1.0})).worker_id for i in range(5, 10)}
    assert fast == {7}
    assert 7 not in slow


def test_ranks_take_turns_and_are_named_in_the_route(make_fleet: Any) -> None:
    fleet = make_fleet(2, ranks=2)
    routes = [fleet.serve(tokens(i, 300)) for i in range(8)]
    assert Counter((route.worker_id, route.dp_rank) for route in routes) == {(1, 0): 2, (1, 1): 2, (2, 0): 2, (2, 1): 2}
    fleet.tell(2, KvStored(HASHES), rank=1)
    route = fleet.serve(PROMPT)
    assert (route.worker_id, route.dp_rank, route.overlap_blocks) == (2, 1, 40)
    assert fleet.serve(PROMPT, hints=RoutingHints(dp_rank=0)).dp_rank == 0
    assert set(fleet.router.state()["workers"]) == {"1/0", "1/1", "2/0", "2/1"}
    assert make_fleet(1).serve(PROMPT).dp_rank is None


def test_two_tenants_never_share(make_fleet: Any) -> None:
    fleet = make_fleet(1)
    for salt, lora in ((None, None), ("a", None), ("b", None), (None, "a"), ("a", "a")):
        fleet.tell(1, KvStored(tuple(sequence_hashes(PROMPT, SIZE, salt="a"))))
        expected = 40 if (salt, lora) == ("a", None) else 0
        _, route = fleet.send(PROMPT, cache_salt=salt, lora=lora)
        assert isinstance(route, Route)
        assert route.overlap_blocks == expected
