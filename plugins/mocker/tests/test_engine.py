from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from dynamo_core.contracts import (
    Context,
    EngineChunk,
    EngineContext,
    EngineRequest,
    KvEvent,
    KvRemoved,
    KvStored,
    SamplingParams,
    StepEngine,
    StopConditions,
)
from dynamo_core.errors import ConfigError, InvalidRequest
from dynamo_core.kv.hashing import sequence_hashes
from dynamo_mocker.engine import MockEngine

Make = Callable[..., Any]


class Sink:
    """Collects what an engine emits; ``done`` is set by the last chunk."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.chunks: list[EngineChunk] = []
        self.done = asyncio.Event()

    def token(self, token_id: int) -> None:
        assert not self.done.is_set()
        self.tokens.append(token_id)

    def chunk(self, chunk: EngineChunk) -> None:
        assert not self.done.is_set()
        self.tokens.extend(chunk.token_ids)
        self.chunks.append(chunk)
        if chunk.finish_reason is not None:
            self.done.set()

    @property
    def cached(self) -> int | None:
        return next(c.cached_tokens for c in self.chunks if c.cached_tokens is not None)


@pytest.fixture
async def make() -> AsyncIterator[Make]:
    engines: list[MockEngine] = []

    async def start(publish: Callable[[Any], None] = lambda events: None, **args: Any) -> MockEngine:
        args.setdefault("speedup_ratio", 0)
        engine = MockEngine(
            None, EngineContext(model_path="/nowhere", model_name="m", worker_id=1, args=args, publish_kv_events=publish)
        )
        engines.append(engine)
        await engine.start()
        return engine

    yield start
    for engine in engines:
        await engine.stop()


def request(prompt: Any, max_tokens: int = 8, *, id: str = "r", **fields: Any) -> EngineRequest:
    stop = fields.pop("stop", StopConditions(max_tokens=max_tokens))
    return EngineRequest(id=id, token_ids=list(prompt), stop=stop, **fields)


async def run(engine: MockEngine, req: EngineRequest, context: Context | None = None) -> Sink:
    sink = Sink()
    engine.submit(req, sink, context or Context())
    await sink.done.wait()
    return sink


async def test_output_is_deterministic_and_ends_with_length(make: Make) -> None:
    first = await run(await make(), request(range(40), 20))
    second = await run(await make(), request(range(40), 20))
    assert first.tokens == second.tokens
    assert len(first.tokens) == 20
    assert len(set(first.tokens)) > 10
    assert first.chunks[-1].finish_reason == "length"


async def test_another_prompt_gives_another_output(make: Make) -> None:
    engine = await make()
    one = await run(engine, request(range(40), 20))
    other = await run(engine, request([*range(39), 77], 20))
    assert one.tokens != other.tokens


@pytest.mark.parametrize("cut", [1, 7, 19])
async def test_prompt_and_output_sent_again_go_on_with_the_same_tokens(make: Make, cut: int) -> None:
    whole = await run(await make(), request(range(40), 20))
    rest = await run(await make(block_size=4), request([*range(40), *whole.tokens[:cut]], 20 - cut))
    assert whole.tokens[:cut] + rest.tokens == whole.tokens


@pytest.mark.parametrize("seed", [None, 5])
async def test_with_a_temperature_choices_differ_and_go_on_elsewhere_all_the_same(make: Make, seed: int | None) -> None:
    warm = SamplingParams(temperature=0.7, seed=seed)
    first = await run(await make(), request(range(40), 20, id="a", sampling=warm))
    other = await run(await make(), request(range(40), 20, id="b", sampling=warm))
    assert (first.tokens == other.tokens) == (seed is not None)
    seeded = await run(await make(), request(range(40), 20, id="a", sampling=SamplingParams(temperature=0.7, seed=6)))
    assert seeded.tokens != first.tokens
    rest = await run(await make(), request([*range(40), *first.tokens[:7]], 13, id="a", sampling=warm))
    assert first.tokens[:7] + rest.tokens == first.tokens


async def test_tokens_come_from_the_upper_middle_of_the_vocabulary(make: Make) -> None:
    sink = await run(await make(vocab_size=1000), request(range(5), 200))
    assert all(500 <= token < 875 for token in sink.tokens)


async def test_eos_is_never_emitted_unless_asked_for(make: Make) -> None:
    free = await run(await make(vocab_size=80), request(range(5), 60))
    eos = free.tokens[3]
    sink = await run(await make(vocab_size=80), request(range(5), 60, eos_token_ids=(eos,)))
    assert eos not in sink.tokens
    assert len(sink.tokens) == 60
    asked = await run(await make(vocab_size=80, emit_eos=True), request(range(5), 60, eos_token_ids=(eos,)))
    assert asked.tokens == free.tokens[: free.tokens.index(eos)]
    assert asked.chunks[-1].finish_reason == "stop"
    stop = StopConditions(max_tokens=60, ignore_eos=True)
    ignored = await run(await make(vocab_size=80, emit_eos=True), request(range(5), eos_token_ids=(eos,), stop=stop))
    assert ignored.tokens == free.tokens


async def test_a_stop_token_ends_the_sequence_after_min_tokens(make: Make) -> None:
    engine = await make(vocab_size=80)
    free = await run(engine, request(range(5), 100))
    stop = free.tokens[4]
    sink = await run(engine, request(range(5), stop=StopConditions(max_tokens=100, stop_token_ids=(stop,))))
    assert sink.tokens == free.tokens[: free.tokens.index(stop)]
    assert (sink.chunks[-1].finish_reason, sink.chunks[-1].stop_reason) == ("stop", stop)
    late = await run(engine, request(range(5), stop=StopConditions(max_tokens=100, stop_token_ids=(stop,), min_tokens=30)))
    assert late.tokens[:30] == free.tokens[:30]
    assert engine.load().running == 0


async def test_logprobs_are_a_distribution_with_the_token_on_top(make: Make) -> None:
    sink = await run(await make(), request(range(5), 6, logprobs=3))
    entries = [entry for chunk in sink.chunks for entry in chunk.logprobs or ()]
    assert [entry.token_id for entry in entries] == sink.tokens
    for entry in entries:
        assert entry.top[0] == (entry.token_id, entry.logprob)
        assert len({token for token, _ in entry.top}) == 3
        assert [lp for _, lp in entry.top] == sorted((lp for _, lp in entry.top), reverse=True)
        assert sum(2.718281828**lp for _, lp in entry.top) <= 1


async def test_a_prefix_is_reused_and_reported(make: Make) -> None:
    engine = await make()
    first = await run(engine, request(range(100), 4))
    second = await run(engine, request([*range(96), 1, 2, 3], 4))
    assert (first.cached, second.cached) == (0, 96)


async def test_a_whole_prompt_in_the_cache_still_computes_one_token(make: Make) -> None:
    engine = await make()
    await run(engine, request(range(64), 4))
    assert (await run(engine, request(range(64), 4))).cached == 63


async def test_the_output_is_reused_as_part_of_the_next_prompt(make: Make) -> None:
    engine = await make()
    first = await run(engine, request(range(16), 64))
    second = await run(engine, request([*range(16), *first.tokens, 5], 4))
    assert second.cached == 64  # the last output token was never computed, so its block is not full


async def test_tenants_and_adapters_share_nothing(make: Make) -> None:
    engine = await make()
    await run(engine, request(range(64), 2))
    assert (await run(engine, request(range(64), 2, cache_salt="a"))).cached == 0
    assert (await run(engine, request(range(64), 2, lora="a"))).cached == 0
    assert (await run(engine, request(range(64), 2, cache_salt="a"))).cached == 63


async def test_events_name_exactly_what_can_be_reused(make: Make) -> None:
    known: set[int] = set()

    def publish(events: list[KvEvent]) -> None:
        for event in events:
            if isinstance(event, KvStored):
                known.update(event.seq_hashes)
            elif isinstance(event, KvRemoved):
                known.difference_update(event.seq_hashes)

    engine = await make(publish, num_blocks=20)
    for start in range(0, 3000, 300):
        prompt = range(start, start + 150)
        sink = await run(engine, request(prompt, 20))
        hashes = sequence_hashes([*prompt, *sink.tokens[:-1]], 16)
        assert known.issuperset(hashes)
        assert len(known) <= 20


async def test_without_prefix_caching_nothing_is_reused_or_published(make: Make) -> None:
    published: list[Any] = []
    engine = await make(published.extend, enable_prefix_caching=False)
    await run(engine, request(range(64), 40))
    assert (await run(engine, request(range(64), 40))).cached == 0
    assert published == []


async def test_preempted_sequences_start_over_and_end_with_the_same_tokens(make: Make) -> None:
    roomy, tight = await make(), await make(num_blocks=30, block_size=4)
    requests = [request(range(i, i + 20), 60, id=str(i)) for i in range(8)]
    expected = await asyncio.gather(*(run(roomy, req) for req in requests))
    got = await asyncio.gather(*(run(tight, req) for req in requests))
    assert [sink.tokens for sink in got] == [sink.tokens for sink in expected]
    assert b"vllm:num_preemptions_total" in tight.metrics()
    assert not tight.metrics().count(b'num_preemptions_total{engine="0",model_name="m"} 0.0')
    assert tight.load().kv_used_blocks == 0


async def test_a_stopped_context_frees_the_sequence_within_a_step(make: Make) -> None:
    engine = await make()
    context, sink = Context(), Sink()

    def token(token_id: int) -> None:
        sink.tokens.append(token_id)
        if len(sink.tokens) == 5:
            context.stop_generating()

    sink.token = token  # type: ignore[method-assign]
    engine.submit(request(range(10), 100_000), sink, context)
    await sink.done.wait()
    assert sink.chunks[-1].finish_reason == "cancelled"
    assert len(sink.tokens) == 5
    assert (engine.load().running, engine.load().kv_used_blocks) == (0, 0)


async def test_a_context_stopped_before_the_submit_ends_at_once(make: Make) -> None:
    context = Context()
    context.kill()
    sink = await run(await make(), request(range(10), 1000), context)
    assert (sink.tokens, sink.chunks[-1].finish_reason) == ([], "cancelled")


async def test_waiting_sequences_can_be_cancelled(make: Make) -> None:
    engine = await make(max_num_seqs=1)
    contexts = [Context() for _ in range(3)]
    sinks = [Sink() for _ in range(3)]
    for i, (context, sink) in enumerate(zip(contexts, sinks, strict=True)):
        engine.submit(request(range(10), 100_000, id=str(i)), sink, context)
    for context, sink in zip(contexts, sinks, strict=True):
        context.kill()
        await sink.done.wait()
    assert engine.load().waiting == 0


async def test_generate_yields_the_same_as_submit_and_closing_it_frees(make: Make) -> None:
    engine = await make()
    sink = await run(engine, request(range(10), 6))
    chunks = [chunk async for chunk in engine.generate(request(range(10), 6), Context())]
    assert [token for chunk in chunks for token in chunk.token_ids] == sink.tokens
    stream = engine.generate(request(range(10), 100_000), Context())
    await anext(stream)
    await stream.aclose()
    await engine.drain()
    assert engine.load().running == 0


async def test_time_passes_as_the_model_says(make: Make) -> None:
    engine = await make(speedup_ratio=10)
    loop = asyncio.get_running_loop()
    began = loop.time()
    await run(engine, request(range(2000), 21))
    prefill = 4.209989e-7 * 2000**2 + 1.518344e-2 * 2000 + 16.50142
    expected = (prefill + 20 * 6) / 10 / 1000
    assert expected * 0.9 <= loop.time() - began  # a busy machine may take longer


async def test_the_loop_keeps_turning_without_delays(make: Make) -> None:
    engine = await make()
    sink = Sink()
    engine.submit(request(range(10), 1000), sink, Context())
    turns = 0
    while not sink.done.is_set():
        turns += 1
        await asyncio.sleep(0)
    assert turns >= 1000


async def test_bad_requests_are_refused(make: Make) -> None:
    engine = await make(num_blocks=4)
    with pytest.raises(InvalidRequest, match="64"):
        engine.submit(request(range(64)), Sink(), Context())
    with pytest.raises(InvalidRequest, match="empty"):
        engine.submit(request([]), Sink(), Context())
    sink = Sink()
    engine.submit(request(range(60), 100), sink, Context())
    with pytest.raises(InvalidRequest, match="already"):
        engine.submit(request(range(60), 100), Sink(), Context())
    await sink.done.wait()
    assert len(sink.tokens) == 4  # what fits into the cache


async def test_metrics_have_vllms_names(make: Make) -> None:
    engine = await make()
    await run(engine, request(range(64), 10))
    await run(engine, request(range(64), 10))
    await engine.drain()
    text = engine.metrics().decode()
    for line in (
        'vllm:num_requests_running{engine="0",model_name="m"} 0.0',
        'vllm:prefix_cache_hits_total{engine="0",model_name="m"} 63.0',
        'vllm:generation_tokens_total{engine="0",model_name="m"} 20.0',
        'vllm:time_to_first_token_seconds_count{engine="0",model_name="m"} 2.0',
        'vllm:inter_token_latency_seconds_count{engine="0",model_name="m"} 18.0',
        'vllm:request_success_total{engine="0",finished_reason="length",model_name="m"} 2.0',
    ):
        assert line in text, line


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ({"speedup": 1}, "speedup_ratio"),
        ({"num_blocks": 0}, "num_blocks=0"),
        ({"block_size": "big"}, "block_size"),
        ({"max_num_batched_tokens": 8}, "max_num_seqs"),
    ],
)
def test_bad_arguments_are_named(args: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        MockEngine(None, EngineContext(model_path="", model_name="m", worker_id=1, args=args))


async def test_it_is_a_step_engine(make: Make) -> None:
    engine = await make()
    assert isinstance(engine, StepEngine)
    assert engine.health_payload().stop.max_tokens == 1


async def test_it_sleeps_with_an_empty_cache(make: Make) -> None:
    engine = await make()
    prompt = range(1000, 1064)
    await run(engine, request(prompt))
    assert (await run(engine, request(prompt))).cached
    await engine.sleep()
    await engine.wake()
    assert (await run(engine, request(prompt))).cached == 0


async def test_ranks_have_caches_of_their_own_and_say_whose_events_are_whose(make: Make) -> None:
    told: list[tuple[int, int]] = []
    engine = await make(publish=lambda events, rank=0: told.append((rank, len(events))), data_parallel_size=2)
    prompt = list(range(1000, 1064))

    async def ask(name: str, rank: int | None) -> Sink:
        sink = Sink()
        stop = StopConditions(max_tokens=2, ignore_eos=True)
        engine.submit(EngineRequest(id=name, token_ids=prompt, stop=stop, dp_rank=rank), sink, Context())
        await asyncio.wait_for(sink.done.wait(), 10)
        return sink

    assert [(await ask(f"{i}", rank)).cached for i, rank in enumerate((1, 1, 0, 0))] == [0, 63, 0, 63]
    assert {rank for rank, _ in told} == {0, 1}
    assert 'vllm:request_success_total{engine="1",finished_reason="length",model_name="m"} 2.0' in engine.metrics().decode()
    with pytest.raises(InvalidRequest, match="2 data-parallel ranks, none is 2"):
        await ask("x", 2)


async def test_requests_without_a_rank_are_spread(make: Make) -> None:
    engine = await make(data_parallel_size=2, speedup_ratio=1)
    sinks = [Sink() for _ in range(4)]
    for i, sink in enumerate(sinks):
        engine.submit(EngineRequest(id=str(i), token_ids=[i + 1], stop=StopConditions(max_tokens=2)), sink, Context())
    assert [len(rank.scheduler.waiting) + len(rank.scheduler.running) for rank in engine._ranks] == [2, 2]
    for sink in sinks:
        await asyncio.wait_for(sink.done.wait(), 10)
    await engine.drain()
