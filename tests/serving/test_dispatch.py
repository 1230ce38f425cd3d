"""Placing requests: turns, holds, lost workers and routers that misbehave."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from dynamo_core.contracts import EngineLoad, Hold, KvBatch, KvStored, Reject, Route, SamplingParams, StopConditions
from dynamo_core.errors import CannotConnect, Disconnected, EngineError, EngineShutdown, InvalidRequest, NoInstances, Overloaded
from dynamo_core.serving.wire import LoadReading, encode_event

TEN = StopConditions(max_tokens=10)


def letters(text: str) -> list[int]:
    return [ord(letter) for letter in text]


async def turn() -> None:
    """Let everything that is due run."""
    for _ in range(3):
        await asyncio.sleep(0)


async def test_requests_of_one_turn_reach_the_router_together(stage: Any) -> None:
    on = stage()
    for _ in range(3):
        on.generate()
    assert on.router.batches == []
    await turn()
    assert [len(batch) for batch in on.router.batches] == [3]
    on.generate()
    await turn()
    assert [len(batch) for batch in on.router.batches] == [3, 1]


async def test_the_worker_gets_the_request_and_the_router_its_accounts(stage: Any) -> None:
    on = stage()
    asked = on.generate("abc", conditions=TEN)
    await turn()
    (stream,) = on.streams
    assert stream.worker_id == 1
    assert stream.request["token_ids"] == letters("abc")
    assert stream.request["eos_token_ids"] == (3,)
    view = on.model.workers[1]
    assert (view.inflight, view.inflight_tokens) == (1, 3)
    stream.items(ord("x"))
    stream.items(ord("y"))
    assert on.router.told[-1] == ("first_token", "r", 1)
    stream.end({"finish_reason": "stop"})
    assert on.router.told[-1] == ("finished", "r", 1, "completed")
    assert on.router.outcomes() == ["completed"]
    assert on.idle()
    assert asked.record.worker_ids == [1]


async def test_without_workers_a_request_fails_with_503(stage: Any) -> None:
    on = stage(workers=())
    asked = on.generate()
    await turn()
    assert isinstance(asked.sink.error, NoInstances)
    assert asked.sink.error.retry_after
    assert on.router.batches == []


async def test_a_held_request_is_offered_again_when_something_changes(stage: Any) -> None:
    on = stage()
    on.router.decide = lambda requests, workers: [Hold() for _ in requests]
    on.generate()
    await turn()
    await turn()
    assert len(on.router.batches) == 1
    assert on.model.waiting == 1
    callback, _ = on.events.subscriptions["events-1", "load"]
    callback(encode_event(LoadReading(1, EngineLoad(running=1))))
    await turn()
    assert len(on.router.batches) == 2
    callback(encode_event(LoadReading(1, EngineLoad(running=1))))  # no news
    callback(encode_event(LoadReading(99, EngineLoad(running=5))))  # of another worker in that process
    await turn()
    assert len(on.router.batches) == 2
    on.model.add_worker(3, on.card, on.workers, "")
    await turn()
    assert len(on.router.batches) == 3
    on.router.decide = None
    on.generate()
    await turn()
    assert [len(batch) for batch in on.router.batches] == [1, 1, 1, 2]
    assert len(on.streams) == 2


async def test_a_held_request_is_offered_again_when_another_ends(stage: Any) -> None:
    on = stage(workers=(1,))
    on.router.decide = lambda requests, workers: [
        Route(1) if workers[1].inflight + place < 1 else Hold() for place, _ in enumerate(requests)
    ]
    on.generate()
    second = on.generate()
    await turn()
    assert len(on.streams) == 1
    on.streams[0].end({"finish_reason": "stop"})
    await turn()
    assert len(on.streams) == 2
    on.streams[1].end(ord("z"), {"finish_reason": "stop"})
    assert second.sink.texts == {0: "z"}


async def test_a_hold_with_a_time_is_offered_again_after_it(stage: Any) -> None:
    on = stage()
    answers = [[Hold(retry_after=0.01)], [Route(2)]]
    on.router.decide = lambda requests, workers: answers.pop(0)
    offered = asyncio.Event()
    on.generate()
    await turn()
    assert len(on.router.batches) == 1
    on.router.first_token = None
    while len(on.streams) < 1:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(offered.wait(), 0.01)
    assert on.streams[0].worker_id == 2


async def test_a_full_queue_refuses(stage: Any) -> None:
    on = stage()
    on.model._dispatcher._max_waiting = 2
    on.router.decide = lambda requests, workers: [Hold(retry_after=7.0) for _ in requests]
    asked = [on.generate() for _ in range(3)]
    await turn()
    assert [type(one.sink.error) for one in asked] == [type(None), type(None), Overloaded]
    assert asked[2].sink.error.retry_after == 7.0
    on.model.close()
    assert [type(one.sink.error) for one in asked[:2]] == [NoInstances, NoInstances]


@pytest.mark.parametrize(
    "answer",
    [
        lambda requests, workers: 1 / 0,
        lambda requests, workers: [],
        lambda requests, workers: None,
        lambda requests, workers: [Route(77) for _ in requests],
        lambda requests, workers: [Route(1, dp_rank=1) for _ in requests],
        lambda requests, workers: ["worker 1" for _ in requests],
    ],
)
async def test_a_router_that_misbehaves_fails_its_requests_and_routing_goes_on(stage: Any, answer: Any) -> None:
    on = stage()
    on.router.decide = answer
    asked = [on.generate(), on.generate()]
    await turn()
    assert all(isinstance(one.sink.error, EngineError) and one.sink.error.status == 500 for one in asked)
    assert sum(on.faults.counts.values()) >= 1
    on.router.decide = None
    fine = on.generate()
    await turn()
    on.streams[-1].end({"finish_reason": "stop"})
    assert fine.sink.usage is not None
    assert on.idle()


async def test_a_router_hears_that_an_impossible_route_did_not_run(stage: Any) -> None:
    on = stage()
    on.router.decide = lambda requests, workers: [Route(77)]
    on.generate()
    await turn()
    assert on.router.told[-1] == ("finished", "r", 77, "failed")


async def test_the_engine_hears_the_rank_that_was_chosen(stage: Any) -> None:
    on = stage(workers=())
    for worker in (1, 2):
        on.model.add_worker(worker, msgspec.structs.replace(on.card, data_parallel_size=2), on.workers, "")
    on.router.decide = lambda requests, workers: [
        Route(1, dp_rank=1) if 1 in workers and not request.excluded else Route(2) for request in requests
    ]
    on.generate()
    await turn()
    on.streams[0].fail(Disconnected("gone"))
    await turn()
    assert [stream.request.get("dp_rank") for stream in on.streams] == [1, None]


async def test_a_router_can_refuse_one_request_of_a_turn(stage: Any) -> None:
    on = stage()
    on.router.decide = lambda requests, workers: [Reject(InvalidRequest("Not this one.")), Route(min(workers))]
    refused, fine = on.generate(), on.generate()
    await turn()
    assert isinstance(refused.sink.error, InvalidRequest)
    on.streams[-1].end({"finish_reason": "stop"})
    assert fine.sink.usage is not None
    assert not on.faults.counts
    assert on.idle()


async def test_what_a_router_raises_while_watching_is_counted_and_changes_nothing(stage: Any) -> None:
    on = stage()

    def broken(*_: Any) -> None:
        raise RuntimeError("broken")

    on.model.router._optional.update(first_token=broken, finished=broken)
    asked = on.generate()
    await turn()
    on.streams[0].end(ord("a"), {"finish_reason": "stop"})
    assert asked.sink.texts == {0: "a"}
    assert asked.sink.usage is not None
    assert dict(on.faults.counts) == {("asked", "first_token"): 1, ("asked", "finished"): 1}


async def test_a_refused_request_goes_to_another_worker_unchanged(stage: Any) -> None:
    on = stage()
    asked = on.generate("abc", conditions=TEN)
    await turn()
    on.streams[0].fail(EngineShutdown("draining"))
    await turn()
    first, second = on.streams
    assert (first.worker_id, second.worker_id) == (1, 2)
    assert second.request["token_ids"] == letters("abc")
    assert second.request["stop"] == {"max_tokens": 10}
    assert on.router.outcomes() == ["migrated"]
    second.end(ord("z"), {"finish_reason": "stop"})
    assert on.router.outcomes() == ["migrated", "completed"]
    assert asked.record.worker_ids == [1, 2]
    assert on.idle()


async def test_a_stream_continues_on_another_worker_token_by_token(stage: Any) -> None:
    on = stage()
    asked = on.generate("abc", conditions=StopConditions(max_tokens=10, min_tokens=3))
    await turn()
    on.streams[0].items({"token_ids": [ord("d")], "cached_tokens": 2}, ord("e"))
    on.streams[0].fail(Disconnected("killed"))
    await turn()
    second = on.streams[1]
    assert second.worker_id == 2
    assert second.request["token_ids"] == letters("abcde")
    assert second.request["stop"] == {"max_tokens": 8, "min_tokens": 1}
    (again,) = on.router.batches[1]
    assert list(again.token_ids) == letters("abcde")
    assert again.excluded == {1}
    second.items({"token_ids": [ord("f")], "cached_tokens": 5})
    second.end(ord("g"), {"finish_reason": "stop"})
    assert asked.sink.texts == {0: "defg"}
    assert asked.sink.usage is not None
    usage = asked.sink.usage
    assert (usage.prompt_tokens, usage.output_tokens, usage.cached_tokens) == (3, 4, 2)
    assert (asked.record.output_tokens, asked.record.cached_tokens) == (4, 2)
    assert on.router.outcomes() == ["migrated", "completed"]
    assert on.model.counters.migrated == 1
    assert on.idle()


async def test_only_the_lost_finish_reason_needs_no_second_worker(stage: Any) -> None:
    on = stage()
    asked = on.generate(conditions=StopConditions(max_tokens=2))
    await turn()
    on.streams[0].items(ord("x"), ord("y"))
    on.streams[0].fail(Disconnected("killed"))
    assert asked.sink.reasons() == {0: "length"}
    assert asked.sink.usage.output_tokens == 2
    assert on.router.outcomes() == ["migrated"]
    await turn()
    assert len(on.streams) == 1


async def test_a_loss_after_the_finish_reason_changes_nothing(stage: Any) -> None:
    on = stage()
    asked = on.generate()
    await turn()
    on.streams[0].items(ord("x"), {"finish_reason": "stop"})
    on.streams[0].fail(Disconnected("killed"))
    await turn()
    assert asked.sink.usage is not None
    assert on.router.outcomes() == ["completed"]
    assert len(on.streams) == 1


async def test_with_no_worker_left_the_error_is_the_loss(stage: Any) -> None:
    on = stage()
    asked = on.generate(conditions=TEN)
    await turn()
    on.streams[0].items(ord("x"))
    on.streams[0].fail(Disconnected("first"))
    await turn()
    on.streams[1].items(ord("y"))
    on.streams[1].fail(Disconnected("second"))
    await turn()
    assert asked.sink.error.message == "second"
    assert asked.record.output_tokens == 2
    assert on.router.outcomes() == ["migrated", "migrated"]
    assert on.model.counters.stranded == 1
    assert on.idle()


async def test_the_migration_limit_holds(stage: Any) -> None:
    on = stage(workers=(1, 2, 3), migration_limit=1)
    asked = on.generate(conditions=TEN)
    await turn()
    on.streams[0].fail(CannotConnect("one"))
    await turn()
    on.streams[1].fail(CannotConnect("two"))
    await turn()
    assert len(on.streams) == 2
    assert isinstance(asked.sink.error, CannotConnect)
    assert on.router.outcomes() == ["migrated", "failed"]


async def test_what_cannot_be_continued_exactly_ends_with_a_typed_error_after_tokens_only(stage: Any) -> None:
    on = stage()
    penalty = SamplingParams(presence_penalty=1.0)
    before, after = on.generate(sampling=penalty), on.generate(sampling=penalty)
    await turn()
    on.streams[1].items(ord("x"))
    on.streams[0].fail(Disconnected("killed"))
    on.streams[1].fail(Disconnected("killed"))
    await turn()
    assert isinstance(after.sink.error, Disconnected)
    assert after.sink.error.message == "killed, and the request cannot go on elsewhere: penalties cannot be continued."
    assert len(on.streams) == 3
    on.streams[2].end({"finish_reason": "stop"})
    assert before.sink.usage is not None


async def test_a_stream_that_has_grown_too_long_stays_where_it_is(stage: Any) -> None:
    on = stage(migration_max_seq_len=6)
    short, long = (on.generate("ab", conditions=TEN) for _ in range(2))
    await turn()
    on.streams[0].items(*b"abcd")
    on.streams[1].items(*b"abcde")
    for stream in on.streams[:2]:
        stream.fail(Disconnected("killed"))
    await turn()
    assert len(on.streams) == 3
    assert short.sink.error is None
    assert long.sink.error.message.endswith("longer than the migration limit of 6 tokens.")
    assert (on.model.counters.stranded, on.model.counters.too_long) == (1, 1)


@pytest.mark.parametrize("error", [InvalidRequest("no", param="x"), EngineError("broken")])
async def test_errors_that_another_worker_would_repeat_are_not_migrated(stage: Any, error: Any) -> None:
    on = stage()
    asked = on.generate()
    await turn()
    on.streams[0].fail(error)
    await turn()
    assert asked.sink.error is error
    assert on.router.outcomes() == ["failed"]
    assert len(on.streams) == 1


async def test_a_stream_that_ends_without_a_finish_reason_is_an_error(stage: Any) -> None:
    on = stage()
    asked = on.generate()
    await turn()
    on.streams[0].end(ord("a"))
    assert isinstance(asked.sink.error, EngineError)
    assert on.router.outcomes() == ["failed"]


async def test_a_connection_that_fails_within_open_is_migrated_too(stage: Any) -> None:
    on = stage()
    on.workers.refuse[1] = CannotConnect("refused")
    asked = on.generate()
    await turn()
    assert [stream.worker_id for stream in on.streams] == [1, 2]
    on.streams[1].end(ord("a"), {"finish_reason": "stop"})
    assert asked.sink.texts == {0: "a"}
    assert on.router.outcomes() == ["migrated", "completed"]


async def test_an_instance_that_left_in_the_same_moment_is_migrated_too(stage: Any) -> None:
    on = stage()
    played = on.workers.open

    def open_unless_first(instance_id: int, *rest: Any) -> Any:
        if instance_id == 1:
            raise NoInstances("gone")
        return played(instance_id, *rest)

    on.workers.open = open_unless_first
    asked = on.generate()
    await turn()
    on.streams[0].end({"finish_reason": "stop"})
    assert asked.sink.usage is not None
    assert asked.record.worker_ids == [1, 2]


async def test_a_pinned_worker_that_is_not_there_is_a_503(stage: Any) -> None:
    on = stage()
    on.router.decide = lambda requests, workers: [Route(request.pinned or 1) for request in requests]
    there, gone = on.generate(pinned=2), on.generate(pinned=9)
    await turn()
    assert on.streams[0].worker_id == 2
    assert isinstance(gone.sink.error, NoInstances)
    on.streams[0].fail(Disconnected("killed"))
    await turn()
    assert isinstance(there.sink.error, Disconnected)


async def test_a_request_cancelled_while_it_waits_never_reaches_a_worker(stage: Any) -> None:
    on = stage()
    on.router.decide = lambda requests, workers: [Hold() for _ in requests]
    stopped, killed = on.generate(), on.generate()
    await turn()
    stopped.context.stop_generating()
    killed.context.kill()
    assert stopped.sink.reasons() == {0: "cancelled"}
    assert stopped.sink.usage is not None
    assert not killed.sink.ended
    on.router.decide = None
    on.generate()
    await turn()
    assert len(on.streams) == 1


async def test_kv_events_reach_the_router_in_order_and_gaps_are_told(stage: Any) -> None:
    heard: list[Any] = []
    on = stage(workers=())
    on.router.kv_events = lambda batch: heard.append(batch.seq)
    on.router.kv_lost = lambda worker, rank: heard.append(("lost", worker, rank))
    on.model.router._optional.update(kv_events=on.router.kv_events, kv_lost=on.router.kv_lost)
    on.model.add_worker(1, on.card, on.workers, "events-1")
    callback, lost = on.events.subscriptions["events-1", "kv"]
    for number in (4, 5, 7):
        callback(encode_event(KvBatch(1, number, (KvStored((1,)),))))
    callback(encode_event(KvBatch(2, 0, ())))  # another worker's
    callback(b"garbage")
    lost()
    callback(encode_event(KvBatch(1, 11, ())))
    assert heard == [4, 5, ("lost", 1, 0), 7, ("lost", 1, 0), 11]
    on.model.remove_worker(1)
    assert not on.events.subscriptions
