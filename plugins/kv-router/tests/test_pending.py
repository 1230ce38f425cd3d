from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dynamo_core.contracts import ModelCard, WorkerView
from dynamo_core.kv import PromptHashes
from dynamo_kv_router.load import PlaceLoad
from dynamo_kv_router.pending import PendingPrompts

CARD = ModelCard(name="m", path="")


def matches(pending: PendingPrompts, asked: PromptHashes) -> list[tuple[int, int]]:
    return sorted((promise.place.id, promise.blocks) for promise in pending.match(asked))


def prompt(family: int, blocks: int) -> PromptHashes:
    """A prompt of one-token blocks; prompts of one family share prefixes, and every two families their first five blocks."""
    return PromptHashes([i if i < 5 else family * 1000 + i for i in range(blocks)], 1)


def test_pending_prompts_promise_the_blocks_in_common() -> None:
    pending = PendingPrompts()
    sent = [prompt(1, 30), prompt(2, 40), prompt(1, 8)]
    for key, made in enumerate(sent):
        pending.add(key, PlaceLoad(WorkerView(100 + key, CARD)), made)
    assert matches(pending, prompt(1, 20)) == [(100, 20), (101, 5), (102, 8)]
    pending.discard(0, sent[0])
    pending.discard(0, sent[0])
    assert matches(pending, prompt(1, 20)) == [(101, 5), (102, 8)]
    assert list(pending.match(PromptHashes([99], 1))) == []
    assert list(pending.match(PromptHashes([], 1))) == []


def test_prompts_that_only_begin_alike_are_not_hashed_to_be_compared() -> None:
    pending = PendingPrompts()
    sent = prompt(1, 4000)
    pending.add(0, PlaceLoad(WorkerView(100, CARD)), sent)
    asked = prompt(2, 4000)
    assert matches(pending, asked) == [(100, 5)]
    assert max(len(sent.known), len(asked.known)) <= PromptHashes.AT_ONCE
    again = prompt(1, 3000)
    assert matches(pending, again) == [(100, 3000)]


@given(st.integers(0, 100), st.integers(0, 100), st.integers(0, 100))
def test_whatever_two_prompts_have_in_common_is_promised(common: int, mine: int, theirs: int) -> None:
    pending = PendingPrompts()
    sent = PromptHashes([7, *range(common), *[1000] * theirs], 1)
    pending.add(0, PlaceLoad(WorkerView(100, CARD)), sent)
    assert matches(pending, PromptHashes([7, *range(common), *[2000] * mine], 1)) == [(100, 1 + common)]
