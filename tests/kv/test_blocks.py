from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynamo_core.contracts import KvCleared, KvEvent, KvRemoved, KvStored
from dynamo_core.kv.blocks import BlockManager


def prompt(manager: BlockManager, hashes: list[int]) -> list[int] | None:
    """Hold what is cached of a prompt and store the rest; ``None`` when it does not fit."""
    found = manager.match(hashes)
    missing = len(hashes) - len(found)
    if manager.available(found) < missing:
        return None
    manager.hold(found)
    fresh = manager.allocate(missing)
    manager.store(fresh, hashes[len(found) :])
    return found + fresh


def apply(known: set[int], events: list[KvEvent]) -> None:
    for event in events:
        if isinstance(event, KvStored):
            assert not known & set(event.seq_hashes)
            known.update(event.seq_hashes)
        elif isinstance(event, KvRemoved):
            assert known >= set(event.seq_hashes)
            known.difference_update(event.seq_hashes)
        else:
            known.clear()


def test_the_least_recently_released_goes_first_and_its_tail_before_its_head() -> None:
    manager = BlockManager(6)
    for hashes in ([1, 2, 3], [4, 5, 6]):
        blocks = prompt(manager, hashes)
        assert blocks is not None
        manager.release(blocks)
    manager.take_events()
    manager.allocate(2)
    assert manager.take_events() == [KvRemoved((3, 2))]
    assert manager.match([1, 2, 3]) == manager.match([1])
    assert len(manager.match([4, 5, 6])) == 3


def test_a_match_that_is_held_counts_against_what_is_available() -> None:
    manager = BlockManager(3)
    blocks = prompt(manager, [1, 2])
    assert blocks is not None
    manager.release(blocks)
    assert (manager.free, manager.available(manager.match([1, 2]))) == (3, 1)


def test_a_block_computed_twice_is_announced_once_and_removed_with_its_last_copy() -> None:
    manager = BlockManager(3)
    first, second = manager.allocate(1), manager.allocate(1)
    manager.store(first, [7])
    manager.store(second, [7])
    manager.release(first)
    manager.release(second)
    assert manager.take_events() == [KvStored((7,))]
    manager.allocate(2)
    assert manager.take_events() == []
    manager.allocate(1)
    assert manager.take_events() == [KvRemoved((7,))]


def test_clear_forgets_all_and_says_so() -> None:
    manager = BlockManager(3)
    held = prompt(manager, [1, 2])
    assert held is not None
    manager.clear()
    assert manager.match([1]) == []
    manager.release(held)
    manager.allocate(3)
    assert manager.take_events() == [KvStored((1, 2)), KvCleared()]


@pytest.mark.parametrize("caching", [True, False])
def test_without_caching_nothing_matches(caching: bool) -> None:
    manager = BlockManager(4, caching=caching)
    prompt(manager, [1, 2])
    assert bool(manager.match([1, 2])) is caching
    assert bool(manager.take_events()) is caching


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(1, 6), st.booleans()), max_size=60))
def test_events_say_what_matches_and_no_block_is_lost(steps: list[tuple[int, int, bool]]) -> None:
    manager = BlockManager(8)
    known: set[int] = set()
    held: list[list[int]] = []
    for family, length, keep in steps:
        hashes = [family * 10 + i for i in range(length)]
        blocks = prompt(manager, hashes)
        if blocks is not None:
            held.append(blocks)
        if held and not keep:
            manager.release(held.pop(0))
        apply(known, manager.take_events())
        for other in range(5):
            chain = [other * 10 + i for i in range(6)]
            expected = next((i for i, h in enumerate(chain) if h not in known), 6)
            assert len(manager.match(chain)) == expected
        assert manager.used == len({b for blocks in held for b in blocks})


def test_a_block_without_content_is_taken_before_all_others() -> None:
    blocks = BlockManager(6)
    first = blocks.allocate(2)
    blocks.store(first, [1, 2])
    blocks.release(first)
    second = blocks.allocate(3)
    blocks.store(second[:2], [3, 4])
    blocks.release(second)
    assert blocks.allocate(1) == second[2:]
    assert blocks.match([1, 2]) == first
