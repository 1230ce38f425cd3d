"""What a router hears of a real vLLM's prefix cache is what is in it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from dynamo_core.contracts import KvStored
from dynamo_core.kv.hashing import sequence_hashes
from dynamo_core.serving.kv_journal import KvJournal

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("ignore"),  # vLLM, torch and what they import warn of one another
]

BLOCK = 32


async def test_stored_blocks_carry_the_prompts_own_hashes(vllm: Any) -> None:
    prompt = vllm.prompt(200)
    hashes = set(sequence_hashes(prompt, BLOCK))
    assert len(hashes) == 6
    assert not hashes & vllm.cached()
    await vllm.ask(prompt, 2)
    await vllm.until(lambda: hashes <= vllm.cached())


async def test_blocks_of_the_output_are_stored_too(vllm: Any) -> None:
    prompt = vllm.prompt(40)
    answer = await vllm.ask(prompt, 60)
    hashes = set(sequence_hashes([*prompt, *answer.token_ids], BLOCK)[:3])
    await vllm.until(lambda: hashes <= vllm.cached())


async def test_a_salted_prompt_has_salted_hashes(vllm: Any) -> None:
    prompt = vllm.prompt(70)
    await vllm.ask(prompt, 2, cache_salt="tenant")
    await vllm.until(lambda: set(sequence_hashes(prompt, BLOCK, salt="tenant")) <= vllm.cached())
    assert not set(sequence_hashes(prompt, BLOCK)) & vllm.cached()


async def test_what_events_say_is_what_the_engine_finds_through_evictions_and_double_copies(vllm: Any) -> None:
    """Far more prompts than fit, some computed twice at the same time (two copies of a block): every prediction must hold."""
    prompts = [vllm.prompt(320) for _ in range(14)]  # 140 blocks, and 96 fit
    seen = set()
    for round_ in range(3):
        for prompt in prompts[round_:]:
            await asyncio.gather(vllm.ask(prompt, 2), vllm.ask(prompt, 2))
    await vllm.until(lambda: set(sequence_hashes(prompts[-1], BLOCK)) <= vllm.cached())
    for prompt in reversed(prompts):
        await _settled(vllm)
        hashes, cached = sequence_hashes(prompt, BLOCK), vllm.cached()
        found = next((i for i, block in enumerate(hashes) if block not in cached), len(hashes))
        answer = await vllm.ask(prompt, 1)
        # vLLM computes the last token in any case, and with it its block.
        assert answer.cached_tokens == min(found, (len(prompt) - 1) // BLOCK) * BLOCK
        seen.add(found)
    assert {0, 10} <= seen
    journal = KvJournal(1, lambda *_: None)  # what a frontend fetches that comes late is the same
    for event in vllm.events:
        journal.publish([event])
    told = [event for batch in journal.state() for event in batch.events]
    assert {block for event in told if isinstance(event, KvStored) for block in event.seq_hashes} == vllm.cached()


async def test_clearing_the_cache_is_heard(vllm: Any) -> None:
    prompt = vllm.prompt(100)
    await vllm.ask(prompt, 2)
    await vllm.until(lambda: set(sequence_hashes(prompt, BLOCK)) <= vllm.cached())
    await vllm.engine.drain()
    await vllm.engine.clear_cache()
    await vllm.until(lambda: not vllm.cached())
    assert (await vllm.ask(prompt, 2)).cached_tokens == 0


async def _settled(vllm: Any) -> None:
    """Events come in order: once those of a probe are here, all earlier ones are."""
    probe = vllm.prompt(BLOCK)
    await vllm.ask(probe, 1)
    await vllm.until(lambda: sequence_hashes(probe, BLOCK)[0] in vllm.cached())
