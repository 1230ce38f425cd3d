"""A real vLLM behind the engine contract."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
from pathlib import Path
from typing import Any

import pytest

from dynamo_core.contracts import Context, EngineChunk, SamplingParams, StepEngine, StopConditions
from dynamo_core.errors import InvalidRequest

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("ignore"),  # vLLM, torch and what they import warn of one another
]


class Sink:
    """Keeps what it gets."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.chunks: list[EngineChunk] = []
        self.first = asyncio.Event()
        self.over = asyncio.Event()

    def token(self, token_id: int) -> None:
        self.tokens.append(token_id)

    def chunk(self, chunk: EngineChunk) -> None:
        assert not self.over.is_set(), "nothing may follow a finish reason"
        self.chunks.append(chunk)
        self.tokens += chunk.token_ids
        self.first.set()
        if chunk.finish_reason is not None:
            self.over.set()


async def test_info_tells_what_the_engine_is_made_of(vllm: Any) -> None:
    assert isinstance(vllm.engine, StepEngine)
    info = vllm.info
    assert (info.context_length, info.block_size, info.max_num_seqs, info.kv_events) == (1024, 32, 4, True)
    assert info.total_kv_blocks == 96
    assert info.extra["vllm_version"].startswith("0.")


async def test_on_a_cpu_its_processes_leave_time_to_all_others(vllm: Any) -> None:
    (core,) = [child.pid for child in multiprocessing.active_children() if "EngineCore" in child.name]
    workers = [int(pid) for pid in Path(f"/proc/{core}/task/{core}/children").read_text().split()]
    spinning = [pid for pid in workers if "VLLM" in Path(f"/proc/{pid}/comm").read_text()]
    assert spinning
    assert {os.sched_getscheduler(pid) for pid in [core, *spinning] if pid} == {os.SCHED_IDLE}
    assert os.sched_getscheduler(0) == os.SCHED_OTHER


async def test_greedy_output_is_the_same_again_cold_cached_and_beside_others(vllm: Any) -> None:
    prompt = vllm.prompt(150)
    cold = await vllm.ask(prompt, 48)
    cached = await vllm.ask(prompt, 48)
    crowd = await asyncio.gather(vllm.ask(vllm.prompt(70), 48), vllm.ask(prompt, 48), vllm.ask(vllm.prompt(33), 48))
    assert len(cold.token_ids) == 48
    assert cold.token_ids == cached.token_ids == crowd[1].token_ids
    assert cold.last.finish_reason == "length"


async def test_greedy_output_varies_within_and_between_prompts(vllm: Any) -> None:
    answers = [await vllm.ask(vllm.prompt(40), 48) for _ in range(4)]
    assert len({tuple(answer.token_ids) for answer in answers}) == 4
    assert all(len(set(answer.token_ids)) > 20 for answer in answers)


async def test_a_continued_output_is_the_rest_of_the_output(vllm: Any) -> None:
    prompt = vllm.prompt(100)
    whole = await vllm.ask(prompt, 40)
    rest = await vllm.ask([*prompt, *whole.token_ids[:17]], 23)
    assert rest.token_ids == whole.token_ids[17:]


async def test_cached_tokens_are_told_on_the_first_chunk_only(vllm: Any) -> None:
    prompt = vllm.prompt(330)
    cold = await vllm.ask(prompt, 4)
    again = await vllm.ask(prompt, 4)
    assert cold.cached_tokens == 0
    assert again.cached_tokens == 320
    assert all(chunk.cached_tokens is None for chunk in again.chunks[1:])


async def test_a_cache_salt_keeps_prompts_apart(vllm: Any) -> None:
    prompt = vllm.prompt(96)
    await vllm.ask(prompt, 2)
    assert (await vllm.ask(prompt, 2, cache_salt="someone else")).cached_tokens == 0
    assert (await vllm.ask(prompt, 2, cache_salt="someone else")).cached_tokens == 64


async def test_logprobs_come_one_a_token_best_first(vllm: Any) -> None:
    answer = await vllm.ask(vllm.prompt(20), 6, logprobs=3)
    entries = [entry for chunk in answer.chunks for entry in chunk.logprobs or ()]
    assert [entry.token_id for entry in entries] == answer.token_ids
    for entry in entries:
        assert len(entry.top) == 3
        values = [value for _, value in entry.top]
        assert values == sorted(values, reverse=True)
        assert entry.top[0] == (entry.token_id, entry.logprob)  # greedy takes the best
        assert entry.logprob <= 0


async def test_a_stop_token_ends_the_sequence_and_is_not_in_it(vllm: Any) -> None:
    prompt = vllm.prompt(50)
    plain = await vllm.ask(prompt, 32)
    stop = plain.token_ids[9]
    ended = await vllm.ask(prompt, stop=StopConditions(max_tokens=32, stop_token_ids=(stop,)))
    assert ended.token_ids == plain.token_ids[: plain.token_ids.index(stop)]
    assert (ended.last.finish_reason, ended.last.stop_reason) == ("stop", stop)


async def test_the_models_own_end_ends_the_sequence_unless_ignored(vllm: Any) -> None:
    prompt = vllm.prompt(50)
    plain = await vllm.ask(prompt, 32)
    end = plain.token_ids[5]
    ended = await vllm.ask(prompt, stop=StopConditions(max_tokens=32), eos_token_ids=(end,))
    assert (ended.last.finish_reason, ended.last.stop_reason) == ("stop", None)
    assert ended.token_ids == plain.token_ids[: plain.token_ids.index(end)]
    ignored = await vllm.ask(prompt, stop=StopConditions(max_tokens=32, ignore_eos=True), eos_token_ids=(end,))
    assert ignored.token_ids == plain.token_ids


async def test_sampling_parameters_reach_vllm(vllm: Any) -> None:
    prompt = vllm.prompt(30)
    hot = SamplingParams(temperature=2.0, seed=1)
    greedy, one, same, other = [
        (await vllm.ask(prompt, 24, sampling=sampling)).token_ids
        for sampling in (SamplingParams(temperature=0.0), hot, hot, SamplingParams(temperature=2.0, seed=2))
    ]
    assert one == same != other
    assert greedy != one
    assert (await vllm.ask(prompt, 24, sampling=SamplingParams(temperature=2.0, top_k=1))).token_ids == greedy
    biased = await vllm.ask(prompt, 5, sampling=SamplingParams(temperature=0.0, logit_bias={77: 100.0}))
    assert biased.token_ids == [77] * 5


@pytest.mark.parametrize(
    ("more", "word"),
    [
        ({"logprobs": 1000}, "logprobs"),
        ({"sampling": SamplingParams(logit_bias={10**6: 1.0})}, "vocab"),
        ({"sampling": SamplingParams(guided={"regex": "a+"})}, "skip_tokenizer_init=false"),
        ({"lora": "poet"}, "poet"),
    ],
)
async def test_what_vllm_refuses_is_an_invalid_request(vllm: Any, more: dict[str, Any], word: str) -> None:
    with pytest.raises(InvalidRequest, match=word):
        vllm.engine.submit(vllm.request([20, 21], **more), Sink(), Context())
    assert vllm.engine.load().prefill_tokens == 0


async def test_a_prompt_beyond_the_context_is_an_invalid_request(vllm: Any) -> None:
    with pytest.raises(InvalidRequest):
        vllm.engine.submit(vllm.request(vllm.prompt(1100)), Sink(), Context())


async def test_cancelling_frees_the_slot_within_a_step(vllm: Any) -> None:
    contexts = [Context() for _ in range(4)]
    sinks = [Sink() for _ in range(4)]
    for context, sink in zip(contexts, sinks, strict=True):
        vllm.engine.submit(vllm.request(vllm.prompt(20), 900), sink, context)
    for sink in sinks:
        await sink.first.wait()
    fifth = Sink()
    vllm.engine.submit(vllm.request(vllm.prompt(20), 4), fifth, Context())
    assert vllm.engine.load().running + vllm.engine.load().waiting == 5
    contexts[0].stop_generating()
    assert sinks[0].chunks[-1].finish_reason == "cancelled" or not sinks[0].over.is_set()
    async with asyncio.timeout(10):
        await fifth.over.wait()  # there are four slots
    assert sinks[0].chunks[-1].finish_reason == "cancelled"
    assert not sinks[1].over.is_set()
    for context in contexts[1:]:
        context.kill()
    async with asyncio.timeout(10):
        await vllm.engine.drain()
    assert [sink.chunks[-1].finish_reason for sink in sinks] == ["cancelled"] * 4
    load = vllm.engine.load()
    assert (load.running, load.waiting, load.kv_used_blocks, load.prefill_tokens) == (0, 0, 0, 0)
    assert load.kv_total_blocks == 96


async def test_a_context_that_is_already_over_gets_its_last_chunk(vllm: Any) -> None:
    context, sink = Context(), Sink()
    context.kill()
    vllm.engine.submit(vllm.request(vllm.prompt(20), 900), sink, context)
    async with asyncio.timeout(10):
        await sink.over.wait()
    assert sink.chunks[-1].finish_reason == "cancelled"
    await vllm.engine.drain()


async def test_closing_the_generator_stops_the_sequence(vllm: Any) -> None:
    chunks = vllm.engine.generate(vllm.request(vllm.prompt(20), 900), Context())
    async for _ in chunks:
        break
    await chunks.aclose()
    async with asyncio.timeout(10):
        await vllm.engine.drain()


async def test_a_lower_priority_number_runs_first(vllm: Any) -> None:
    contexts = [Context() for _ in range(4)]
    sinks = [Sink() for _ in range(4)]
    for context, sink in zip(contexts, sinks, strict=True):
        vllm.engine.submit(vllm.request(vllm.prompt(8), 900), sink, context)
    for sink in sinks:
        await sink.first.wait()
    late, urgent = Sink(), Sink()
    vllm.engine.submit(vllm.request(vllm.prompt(8), 200, priority=5), late, Context())
    vllm.engine.submit(vllm.request(vllm.prompt(8), 2, priority=-5), urgent, Context())
    contexts[0].kill()
    async with asyncio.timeout(20):
        await urgent.over.wait()
    assert not late.over.is_set()
    for context in contexts[1:]:
        context.kill()
    async with asyncio.timeout(20):
        await late.over.wait()


async def test_metrics_are_vllms_series_each_once(vllm: Any) -> None:
    await vllm.ask(vllm.prompt(10), 2)
    text = (await asyncio.to_thread(vllm.engine.metrics)).decode()
    samples = [line.rsplit(" ", 1)[0] for line in text.splitlines() if line and not line.startswith("#")]
    assert len(samples) == len(set(samples))
    assert all(sample.startswith("vllm:") for sample in samples)
    names = {sample.partition("{")[0] for sample in samples}
    assert {"vllm:num_requests_running", "vllm:kv_cache_usage_perc", "vllm:generation_tokens_total"} <= names
    assert 'model_name="tiny"' in text


async def test_the_canary_request_is_answered(vllm: Any) -> None:
    request = vllm.engine.health_payload()
    chunks = [chunk async for chunk in vllm.engine.generate(request, Context())]
    assert chunks[-1].finish_reason == "length"
