from __future__ import annotations

from typing import Any

import pytest

from dynamo_core.contracts import KvRemoved, KvStored
from dynamo_core.kv import PromptHashes, sequence_hashes
from dynamo_kv_router.scarcity import Scarcity

SIZE = 16
PROMPT = list(range(1600))
HASHES = sequence_hashes(PROMPT, SIZE)


LOTS = [list(range(start, start + 1600)) for start in range(0, 800_000, 1600)]
"""Prompts of a hundred blocks each."""


def asked(scarcity: Scarcity, found: int, times: int = 1) -> float:
    for _ in range(times):
        for prompt in LOTS:
            scarcity.observe(PromptHashes(prompt, SIZE), found)
    return scarcity.share


def test_caches_are_taken_to_be_scarce_until_they_prove_not_to_be() -> None:
    scarcity = Scarcity()
    assert scarcity.share == 1
    scarcity.observe(PromptHashes(PROMPT, SIZE), 0)
    assert scarcity.share == 1  # nobody ever had it
    assert asked(scarcity, 100) < 0.001


@pytest.mark.parametrize("found", [0, 50, 75, 97])
def test_the_share_is_what_was_evicted_of_what_could_have_been_found(found: int) -> None:
    scarcity = Scarcity()
    for prompt in LOTS:
        scarcity.evicted(sequence_hashes(prompt, SIZE)[found:])
    assert asked(scarcity, found, 5) == pytest.approx(1 - found / 100, abs=0.01)
    assert asked(scarcity, 100, 5) < 0.01


def test_evicted_blocks_count_up_to_one_that_was_not() -> None:
    scarcity = Scarcity()
    for prompt in LOTS:
        hashes = sequence_hashes(prompt, SIZE)
        scarcity.evicted([*hashes[20:40], *hashes[90:]])
    assert asked(scarcity, 20, 5) == pytest.approx(20 / 40, abs=0.02)
    assert asked(scarcity, 40, 5) < 0.01


def test_what_was_evicted_is_remembered_within_bounds() -> None:
    scarcity = Scarcity()
    for start in range(0, 400_000, 1000):
        scarcity.evicted(range(start, start + 1000))
    assert len(scarcity._young) + len(scarcity._old) <= 140_000


def test_where_caches_hold_everything_an_idle_worker_is_worth_more(make_fleet: Any) -> None:
    def chosen(*, scarce: bool) -> int:
        fleet = make_fleet(2)
        for i in range(1, 2000):
            family = range(10_000 * i, 10_000 * i + 320)
            fleet.tell(2, KvStored(tuple(sequence_hashes(family, SIZE))))
            if scarce:
                fleet.tell(2, KvRemoved(tuple(sequence_hashes(family, SIZE))))
            fleet.serve(family, pinned=2)
        fleet.tell(1, KvStored(tuple(HASHES[:40])))
        for i in range(3):
            request, _ = fleet.send(range(50_000_000 + 10_000 * i, 50_000_000 + 10_000 * i + 3000), pinned=1)
            fleet.now += 0.1
            fleet.router.first_token(request, 1)
        return int(fleet.send(PROMPT[:640])[1].worker_id)

    assert chosen(scarce=True) == 1
    assert chosen(scarce=False) == 2
