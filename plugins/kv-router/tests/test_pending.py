from __future__ import annotations

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
