"""From engine items to what the client sees: text, stops, log-probabilities, usage, and exactly one end."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dynamo_core.contracts import Context, SamplingParams, StopConditions
from dynamo_core.errors import ContextLengthExceeded, DeadlineExceeded, EngineError, ProtocolError

MANY = StopConditions(max_tokens=1000)


def letters(text: str) -> list[int]:
    return [ord(letter) for letter in text]


async def turn() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


async def begin(on: Any, prompt: str = "abc", **options: Any) -> tuple[Any, Any]:
    options.setdefault("conditions", MANY)
    asked = on.generate(prompt, **options)
    await turn()
    return asked, on.streams[-1]


async def test_each_token_is_an_event_and_each_frame_a_flush(stage: Any) -> None:
    asked, stream = await begin(stage())
    stream.items(*letters("he"))
    stream.items(*letters("y"))
    assert asked.sink.calls == [("text", 0, "h"), ("text", 0, "e"), ("flush",), ("text", 0, "y"), ("flush",)]
    stream.end({"finish_reason": "stop", "stop_reason": 3})
    assert asked.sink.flushes == 2
    last = asked.sink.outputs[0][-1]
    assert (last.finish_reason, last.stop_reason, last.text) == ("stop", 3, "")
    assert asked.sink.usage.output_tokens == 3
    assert asked.record.finish_reasons == ["stop"]


async def test_a_character_in_pieces_is_told_once_it_is_whole(stage: Any) -> None:
    asked, stream = await begin(stage())
    for byte in "€".encode():
        stream.items(1000 + byte)
    stream.items([ord("x"), 1000 + 0xE2])
    stream.end({"finish_reason": "length"})
    assert asked.sink.texts == {0: "€x�"}
    assert asked.sink.usage.output_tokens == 5
    assert [call[2] for call in asked.sink.calls if call[0] == "text"] == ["€", "x"]


async def test_the_last_token_may_come_with_the_finish_reason(stage: Any) -> None:
    asked, stream = await begin(stage(), conditions=StopConditions(max_tokens=2))
    stream.end({"token_ids": [ord("a")], "cached_tokens": 1}, {"token_ids": [ord("b")], "finish_reason": "length"})
    assert asked.sink.texts == {0: "ab"}
    assert asked.sink.reasons() == {0: "length"}
    assert asked.sink.usage.cached_tokens == 1


async def test_an_engine_that_does_not_count_is_cut_at_max_tokens(stage: Any) -> None:
    on = stage()
    asked, stream = await begin(on, conditions=StopConditions(max_tokens=3))
    stream.items(*letters("ab"))
    stream.items(*letters("cdef"))
    assert asked.sink.texts == {0: "abc"}
    assert asked.sink.reasons() == {0: "length"}
    assert asked.sink.usage.output_tokens == 3
    assert stream.cancelled == [True]
    assert on.router.outcomes() == ["completed"]


async def test_a_stop_string_cuts_the_text_and_frees_the_engine(stage: Any) -> None:
    on = stage()
    asked, stream = await begin(on, stop=("END", "xx"))
    stream.items(*letters("one E"))
    stream.items(*letters("NDless"))
    assert asked.sink.texts == {0: "one "}
    last = asked.sink.outputs[0][-1]
    assert (last.finish_reason, last.stop_reason) == ("stop", "END")
    assert asked.sink.usage.output_tokens == len("one END")
    assert stream.cancelled == [True]
    assert on.router.outcomes() == ["completed"]
    assert on.idle()


async def test_a_stop_string_may_stay(stage: Any) -> None:
    asked, stream = await begin(stage(), stop=("END",), include_stop=True)
    stream.items(*letters("one ENDless"))
    assert asked.sink.texts == {0: "one END"}


async def test_what_only_looked_like_a_stop_string_is_told_at_the_end(stage: Any) -> None:
    asked, stream = await begin(stage(), stop=("END",))
    stream.items(*letters("one EN"))
    assert asked.sink.texts == {0: "one "}
    stream.end({"finish_reason": "length"})
    assert asked.sink.texts == {0: "one EN"}
    assert asked.sink.reasons() == {0: "length"}


async def test_stop_strings_wait_for_min_tokens(stage: Any) -> None:
    asked, stream = await begin(stage(), stop=("x",), conditions=StopConditions(max_tokens=10, min_tokens=2))
    stream.items(*letters("xaxb"))
    assert asked.sink.texts == {0: "xa"}


async def test_a_stop_string_across_a_migration(stage: Any) -> None:
    from dynamo_core.errors import Disconnected

    on = stage()
    asked, stream = await begin(on, stop=("END",))
    stream.items(*letters("oE"))
    stream.fail(Disconnected("killed"))
    await turn()
    assert on.streams[1].request["token_ids"] == letters("abcoE")
    on.streams[1].items(*letters("NDx"))
    assert asked.sink.texts == {0: "o"}
    assert asked.sink.reasons() == {0: "stop"}
    assert asked.sink.usage.output_tokens == 4


def logprob(letter: str) -> dict[str, Any]:
    return {"token_ids": [ord(letter)], "logprobs": [[ord(letter), -0.5, [[ord(letter), -0.5], [ord("z"), -2.0]]]]}


async def test_log_probabilities_come_with_their_token_as_text_and_bytes(stage: Any) -> None:
    asked, stream = await begin(stage(), logprobs=2)
    stream.items(logprob("a"))
    stream.end({**logprob("b"), "finish_reason": "stop"})
    first = asked.sink.outputs[0][0]
    assert first.text == "a"
    assert first.token_ids == (ord("a"),)
    (entry,) = first.logprobs
    assert (entry.token, entry.token_id, entry.logprob, entry.bytes) == ("a", 97, -0.5, b"a")
    assert [top.token for top in entry.top] == ["a", "z"]
    assert sum(len(output.logprobs or ()) for output in asked.sink.outputs[0]) == 2


async def test_no_more_alternatives_than_asked_for(stage: Any) -> None:
    asked, stream = await begin(stage(), logprobs=0)
    stream.items(logprob("a"))
    assert asked.sink.outputs[0][0].logprobs[0].top == ()


async def test_log_probabilities_wait_for_text_that_is_held_back_and_go_with_what_is_cut(stage: Any) -> None:
    asked, stream = await begin(stage(), logprobs=1, stop=("END",))
    for letter in "aEN":
        stream.items(logprob(letter))
    assert [[entry.token for entry in output.logprobs] for output in asked.sink.outputs[0]] == [["a"]]
    stream.items(logprob("x"))
    assert [entry.token for entry in asked.sink.outputs[0][1].logprobs] == ["E", "N", "x"]
    for letter in "END":
        stream.items(logprob(letter))
    told = [entry.token for output in asked.sink.outputs[0] for entry in output.logprobs or ()]
    assert told == list("aENx")
    assert asked.sink.usage.output_tokens == 7


async def test_the_log_probability_of_a_piece_of_a_character_is_told(stage: Any) -> None:
    asked, stream = await begin(stage(), logprobs=0)
    data = "é".encode()
    for byte in data:
        stream.items({"token_ids": [1000 + byte], "logprobs": [[1000 + byte, -1.0, []]]})
    stream.end({"finish_reason": "stop"})
    told = [entry for output in asked.sink.outputs[0] for entry in output.logprobs or ()]
    assert b"".join(entry.bytes for entry in told) == data
    assert asked.sink.texts == {0: "é"}


async def test_several_choices_share_one_end_and_one_flush_a_turn(stage: Any) -> None:
    on = stage()
    asked = on.generate(n=2, prompts=(letters("ab"), letters("cde")), conditions=MANY, sampling=SamplingParams(seed=5))
    await turn()
    assert [stream.request["token_ids"] for stream in on.streams] == [letters("ab")] * 2 + [letters("cde")] * 2
    assert [stream.request["sampling"]["seed"] for stream in on.streams] == [5, 6, 5, 6]
    assert len({stream.request["id"] for stream in on.streams}) == 4
    for index, stream in enumerate(on.streams):
        stream.items({"token_ids": [ord("0") + index], "cached_tokens": index + 1})
    assert asked.sink.flushes == 0
    await turn()
    assert asked.sink.flushes == 1
    for stream in on.streams[:3]:
        stream.end({"finish_reason": "stop"})
    assert asked.sink.usage is None
    on.streams[3].end(ord("x"), {"finish_reason": "length"})
    assert asked.sink.texts == {0: "0", 1: "1", 2: "2", 3: "3x"}
    usage = asked.sink.usage
    assert (usage.prompt_tokens, usage.output_tokens, usage.cached_tokens) == (5, 5, 1 + 3)
    assert asked.record.finish_reasons == ["stop", "stop", "stop", "length"]
    await turn()
    assert on.idle()


async def test_one_choice_that_fails_ends_them_all(stage: Any) -> None:
    on = stage()
    asked = on.generate(n=3, conditions=MANY)
    await turn()
    on.streams[0].end({"finish_reason": "stop"})
    on.streams[1].items(ord("x"))
    on.streams[1].fail(EngineError("broken"))
    assert asked.sink.error.message == "broken"
    assert on.streams[2].cancelled == [True]
    assert sorted(on.router.outcomes()) == ["completed", "failed", "failed"]
    assert asked.record.output_tokens == 1
    on.streams[2].over = False
    on.streams[2].items(ord("y"))  # a frame that was on its way
    assert on.idle()


async def test_a_killed_context_ends_in_silence_with_its_accounts_settled(stage: Any) -> None:
    on = stage()
    asked, stream = await begin(on)
    stream.items(*letters("ab"))
    calls = len(asked.sink.calls)
    asked.context.kill()
    assert asked.record.output_tokens == 2
    assert asked.record.prompt_tokens == 3
    stream.context = Context()
    stream.items(*letters("cd"))
    await turn()
    assert len(asked.sink.calls) == calls
    assert not asked.sink.ended
    assert on.router.outcomes() == ["cancelled"]
    assert on.idle()


async def test_a_context_killed_from_within_the_sink_is_silent_at_once(stage: Any) -> None:
    on = stage()
    asked, stream = await begin(on)
    asked.sink.on_text = asked.context.kill
    stream.items(*letters("abc"))
    assert asked.sink.texts == {0: "a"}
    assert asked.sink.flushes == 0
    assert asked.record.output_tokens == 1
    assert on.router.outcomes() == ["cancelled"]


async def test_a_stopped_context_ends_with_what_the_engine_still_says(stage: Any) -> None:
    on = stage()
    asked, stream = await begin(on)
    stream.items(ord("a"))
    asked.context.stop_generating()
    stream.end(ord("b"), {"finish_reason": "cancelled"})
    assert asked.sink.texts == {0: "ab"}
    assert asked.sink.reasons() == {0: "cancelled"}
    assert asked.sink.usage.output_tokens == 2
    assert on.router.outcomes() == ["cancelled"]


async def test_a_stopped_request_whose_worker_dies_is_not_continued(stage: Any) -> None:
    from dynamo_core.errors import Disconnected

    on = stage()
    asked, stream = await begin(on)
    stream.items(ord("a"))
    asked.context.stop_generating()
    stream.fail(Disconnected("killed"))
    await turn()
    assert len(on.streams) == 1
    assert asked.sink.reasons() == {0: "cancelled"}
    assert on.router.outcomes() == ["cancelled"]


@pytest.mark.parametrize("kill", [True, False])
async def test_a_context_that_was_cancelled_before_never_reaches_a_worker(stage: Any, kill: bool) -> None:
    on = stage()
    context = Context()
    context.kill() if kill else context.stop_generating()
    asked = on.generate(context=context)
    assert not asked.sink.calls
    await turn()
    assert not on.streams
    assert asked.sink.ended is not kill
    assert on.model.waiting == 0


async def test_a_deadline_ends_the_request(stage: Any) -> None:
    on = stage()
    asked, stream = await begin(on, context=Context(deadline=time.time() + 0.02))
    stream.items(ord("a"))
    ended = asyncio.Event()
    asked.sink.failed = lambda error: (setattr(asked.sink, "error", error), ended.set())
    await asyncio.wait_for(ended.wait(), 5)
    assert isinstance(asked.sink.error, DeadlineExceeded)
    assert stream.cancelled == [True]
    assert on.router.outcomes() == ["failed"]
    assert asked.record.output_tokens == 1


async def test_a_deadline_covers_the_time_in_the_queue(stage: Any) -> None:
    from dynamo_core.contracts import Hold

    on = stage()
    on.router.decide = lambda requests, workers: [Hold() for _ in requests]
    asked = on.generate(context=Context(deadline=time.time() - 1))
    ended = asyncio.Event()
    asked.sink.failed = lambda error: (setattr(asked.sink, "error", error), ended.set())
    await asyncio.wait_for(ended.wait(), 5)
    assert isinstance(asked.sink.error, DeadlineExceeded)


async def test_a_finished_request_forgets_its_deadline_and_its_context(stage: Any) -> None:
    asked, stream = await begin(stage(), context=Context(deadline=time.time() + 60))
    stream.end({"finish_reason": "stop"})
    assert asked.generation._timer._timer is None
    assert not asked.context._callbacks
    asked.context.kill()


async def test_a_slow_client_pauses_its_streams_over_a_migration_too(stage: Any) -> None:
    from dynamo_core.errors import Disconnected

    on = stage()
    asked, stream = await begin(on)
    asked.generation.pause()
    assert stream.paused
    stream.fail(Disconnected("killed"))
    await turn()
    assert on.streams[1].paused
    asked.generation.resume()
    assert not on.streams[1].paused


@pytest.mark.parametrize("item", ["text", {"token_ids": "no"}, 1.5, None])
async def test_an_item_that_is_none_fails_only_its_own_request(stage: Any, item: Any) -> None:
    on = stage()
    asked, stream = await begin(on)
    stream.items(ord("a"), item)
    assert isinstance(asked.sink.error, ProtocolError)
    assert stream.cancelled == [True]
    assert on.idle()


async def test_a_token_that_the_tokenizer_lacks_is_the_engines_error(stage: Any) -> None:
    asked, stream = await begin(stage())
    stream.items(ord("a"), 99999)
    assert isinstance(asked.sink.error, EngineError)
    assert "99999" not in asked.sink.error.message


async def test_an_error_chunk_fails_without_the_engines_words(stage: Any) -> None:
    asked, stream = await begin(stage())
    stream.items({"finish_reason": "error", "error": "CUDA at 0x7f"})
    assert asked.sink.error.status == 500
    assert "CUDA" not in asked.sink.error.message


async def test_a_cancellation_that_nobody_asked_for_is_an_error(stage: Any) -> None:
    asked, stream = await begin(stage())
    stream.items(ord("a"), {"finish_reason": "cancelled"})
    assert isinstance(asked.sink.error, EngineError)


async def test_times_are_stamped(stage: Any) -> None:
    asked, stream = await begin(stage())
    assert asked.record.first_token is None
    stream.items({"cached_tokens": 0})
    assert asked.record.first_token is None
    stream.items(ord("a"))
    first = asked.record.first_token
    assert first is not None
    assert asked.record.last_token >= first
    stream.items(ord("b"))
    assert asked.record.first_token == first
    assert asked.record.last_token > first


async def test_a_router_that_counts_tokens_hears_of_each_frame(stage: Any) -> None:
    on = stage()
    counted: list[int] = []
    on.model.router._optional["output_tokens"] = lambda request, worker, count: counted.append(count)
    asked, stream = await begin(on)
    stream.items(*letters("ab"))
    stream.items([1, 2, 4], ord("c"))
    stream.end(ord("d"), {"finish_reason": "stop"})
    assert counted[:2] == [2, 4]
    assert asked.sink.usage.output_tokens == 7


def test_the_context_limits_what_is_generated(stage: Any) -> None:
    async def check() -> None:
        model = stage(context_length=10).model
        assert model.limit(4, None) == 6
        assert model.limit(4, 3) == 3
        assert model.limit(4, 100) == 6
        with pytest.raises(ContextLengthExceeded) as error:
            model.limit(10, 1, param="prompt")
        assert error.value.param == "prompt"
        assert stage(context_length=0).model.limit(10**6, 5) == 5

    asyncio.run(check())


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    text=st.text(alphabet="abE", max_size=30),
    stops=st.lists(st.text(alphabet="abE", min_size=1, max_size=4), max_size=2, unique=True),
    cuts=st.lists(st.integers(1, 5), max_size=30),
    logprobs=st.sampled_from([None, 0]),
    lost=st.sets(st.integers(0, 30), max_size=2),
)
def test_the_text_does_not_depend_on_frames_or_migrations(
    stage: Any, text: str, stops: list[str], cuts: list[int], logprobs: int | None, lost: set[int]
) -> None:
    async def play() -> None:
        from dynamo_core.errors import Disconnected

        on = stage(workers=(1, 2, 3))
        asked, stream = await begin(on, stop=tuple(stops), logprobs=logprobs)
        done, sizes = 0, iter(cuts)
        while done < len(text) and not asked.sink.ended:
            size = next(sizes, 1)
            stream.items(*(logprob(letter) if logprobs is not None else ord(letter) for letter in text[done : done + size]))
            done += size
            if any(done - size < cut <= done for cut in lost) and not asked.sink.ended:
                stream.fail(Disconnected("killed"))
                await turn()
                stream = on.streams[-1]
                assert stream.request["token_ids"] == letters("abc" + text[:done])
        if not asked.sink.ended:
            stream.end({"finish_reason": "stop"})
        ends = {text.find(stop) + len(stop): stop for stop in sorted(stops, key=len) if stop in text}
        expected = text[: min(ends) - len(ends[min(ends)])] if ends else text
        assert asked.sink.texts.get(0, "") == expected
        assert asked.sink.usage.output_tokens == (min(ends) if ends else len(text))
        told = "".join(entry.token for output in asked.sink.outputs[0] for entry in output.logprobs or ())
        assert told == ("" if logprobs is None else expected)
        assert on.idle()

    asyncio.run(play())
