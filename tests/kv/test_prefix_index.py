from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynamo_core.kv import PrefixIndex, PromptHashes, slots_of

pytestmark = pytest.mark.usefixtures("block_map")


def prompt(family: int, blocks: int) -> PromptHashes:
    """A prompt of one-token blocks; prompts of one family share prefixes, and every two families their first five blocks."""
    return PromptHashes([i if i < 5 else family * 1000 + i for i in range(blocks)], 1)


def hashes(family: int, blocks: int) -> list[int]:
    made = prompt(family, blocks)
    return made.upto(made.count)


def found(index: PrefixIndex, wanted: PromptHashes) -> dict[int, int]:
    matches = index.match(wanted)
    assert [m.blocks for m in matches] == sorted(m.blocks for m in matches)
    return {slot: match.blocks for match in matches for slot in slots_of(match.slots)}


def naive(owned: dict[int, set[int]], wanted: PromptHashes) -> dict[int, int]:
    every = wanted.upto(wanted.count)
    result = {}
    for slot, blocks in owned.items():
        held = next((i for i, h in enumerate(every) if h not in blocks), len(every))
        if held:
            result[slot] = held
    return result


@given(st.integers(1, 2**80))
def test_slots_are_the_bits(bits: int) -> None:
    assert list(slots_of(bits)) == [i for i in range(81) if bits >> i & 1]


@pytest.mark.parametrize(("common", "hashed"), [(0, 16), (1, 16), (15, 16), (16, 48), (40, 48), (46, 112)])
def test_a_prompt_is_hashed_little_further_than_anybody_has_it(common: int, hashed: int) -> None:
    index = PrefixIndex()
    slot = index.open(1000)
    wanted = PromptHashes(range(1000), 1)
    index.stored(slot, PromptHashes(range(1000), 1).upto(common)[:common])
    assert found(index, wanted) == ({slot: common} if common else {})
    assert len(wanted.known) == hashed


lengths = st.integers(0, 90)
changes = st.lists(
    st.tuples(st.sampled_from(["store", "cut", "close"]), st.integers(0, 6), st.integers(0, 2), lengths), max_size=40
)


@settings(max_examples=200, deadline=None)
@given(changes, st.integers(0, 2), lengths)
def test_matches_are_those_of_a_naive_model(steps: list[tuple[str, int, int, int]], family: int, length: int) -> None:
    index = PrefixIndex()
    owned: dict[int, set[int]] = {index.open(10_000): set() for _ in range(7)}
    for what, slot, of, blocks in steps:
        if what == "store":
            index.stored(slot, hashes(of, blocks))
            owned[slot].update(hashes(of, blocks))
        elif what == "cut":  # engines evict the end of a prefix first
            gone = hashes(of, 90)[max(5, blocks) :]
            index.removed(slot, gone)
            owned[slot].difference_update(gone)
        else:
            index.close(slot)
            assert index.open(10_000) == slot
            owned[slot].clear()
        assert index.size(slot) == len(owned[slot])
    assert found(index, prompt(family, length)) == naive(owned, prompt(family, length))
    assert len(index) == len(set().union(*owned.values()))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sets(st.integers(0, 70)), min_size=1, max_size=8), st.integers(0, 70))
def test_with_holes_the_answer_ends_at_a_hole(holdings: list[set[int]], length: int) -> None:
    index = PrefixIndex()
    every = hashes(1, 71)
    for positions in holdings:
        index.stored(index.open(1000), [every[i] for i in sorted(positions)])
    result = found(index, prompt(1, length))
    for slot, positions in enumerate(holdings):
        end = result.get(slot, 0)
        assert end == 0 or end - 1 in positions
        assert end in (0, length) or end not in positions
        assert (0 in positions and length > 0) == (end > 0)


def test_removing_what_is_unknown_changes_nothing() -> None:
    index = PrefixIndex()
    slot = index.open(10)
    index.removed(slot, [1, 2])
    index.stored(slot, [1])
    index.stored(slot, [1])
    index.removed(slot, [1])
    assert (len(index), index.size(slot)) == (0, 0)


def test_beyond_the_limit_the_oldest_go() -> None:
    index = PrefixIndex()
    slot = index.open(10)
    index.stored(slot, hashes(1, 10))
    index.stored(slot, hashes(1, 10)[:3])
    assert index.size(slot) == 10
    index.stored(slot, [7], keep=0.5)
    assert index.size(slot) == 5
    assert found(index, prompt(1, 10)) == {0: 4}


def test_what_is_stored_with_a_time_leaves_at_that_time() -> None:
    index = PrefixIndex()
    slot = index.open(10, expiring=True)
    index.stored(slot, [1, 2], 5.0)
    index.stored(slot, [3], 6.0)
    index.stored(slot, [1], 7.0)
    index.expire(slot, 4.9)
    assert index.size(slot) == 3
    index.expire(slot, 6.0)
    assert index.size(slot) == 1
