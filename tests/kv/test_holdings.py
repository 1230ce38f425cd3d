from __future__ import annotations

import random
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynamo_core.kv import PrefixIndex
from dynamo_core.kv.holdings import BlockLog


class SmallLog(BlockLog):
    """Few blocks are enough to fill several buckets."""

    _ONE, _BUCKETS, _LEAST = 8, 4, 2


class Owner:
    """A slot of an index, and the set of what it has."""

    def __init__(self, log: type[BlockLog]) -> None:
        self.where: dict[int, int] = {}
        self.log = log(10_000, 4, self.where)

    def store(self, names: list[int]) -> None:
        new = [name for name in dict.fromkeys(names) if name not in self.where]
        self.where.update(dict.fromkeys(new, 4))
        self.log.add(new)

    def remove(self, names: list[int]) -> None:
        gone = {name for name in names if self.where.pop(name, None) is not None}
        self.log.discard(len(gone))


steps = st.lists(st.tuples(st.sampled_from(["store", "store", "remove", "oldest", "drain"]), st.lists(st.integers(0, 60))))


@settings(max_examples=500, deadline=None)
@given(steps)
def test_every_block_is_in_the_log_until_it_leaves(story: list[tuple[str, list[int]]]) -> None:
    owner = Owner(SmallLog)
    for what, names in story:
        if what == "store":
            owner.store(names)
        elif what == "remove":
            owner.remove(names)
        elif what == "oldest":
            count, before = len(names), len(owner.where)
            found = owner.log.oldest(count)
            assert len(found) == min(count, before)
            assert set(found) <= owner.where.keys()
            owner.remove(found)
        else:
            everything = owner.log.drain()
            assert owner.where.keys() <= set(everything)
            owner.remove(everything)
        assert owner.log.size == len(owner.where)
    assert owner.where.keys() <= set(owner.log.drain())


@pytest.mark.parametrize("together", [10_000, 11_000, 20_000])
def test_what_left_does_not_pile_up(together: int) -> None:
    """Runs come in turn and the oldest leaves for each: soon again, later, or never."""
    owner, lots = Owner(BlockLog), random.Random(together)
    names = [lots.getrandbits(64) for _ in range(together)]
    runs = [names[i : i + 50] for i in range(0, together, 50)]
    for turn in range(5 * len(runs)):
        if turn >= 200:
            owner.remove(runs[(turn - 200) % len(runs)])
        owner.store(runs[turn % len(runs)])
        assert len(owner.log) <= 1.5 * owner.log.size + 2048
    assert owner.log.size == 10_000


def test_the_oldest_of_many_are_from_the_older_half() -> None:
    owner = Owner(BlockLog)
    lots = random.Random(1)
    names = [lots.getrandbits(64) for _ in range(20_000)]
    for i in range(0, 20_000, 100):
        owner.store(names[i : i + 100])
    assert set(owner.log.oldest(4000)) <= set(names[:10_000])


def test_names_that_no_prompt_has_do_no_harm() -> None:
    index = PrefixIndex()
    slot, other = index.open(10**6), index.open(10**6)
    for start in range(0, 10_000, 100):
        index.stored(slot, [-1 - start, 2**64 + start, *range(start, start + 98)])
    index.stored(other, [-1])
    assert index.size(slot) == 10_000
    index.removed(slot, [-1, -101])
    index.close(slot)
    assert len(index) == 1


def test_a_block_takes_less_than_200_bytes_however_many_of_8_workers_have_it() -> None:
    for same in (True, False):
        tracemalloc.start()
        index = PrefixIndex()
        for slot in [index.open(1 << 20) for _ in range(8)]:
            lots = random.Random(0 if same else slot)
            for _ in range(80):
                index.stored(slot, [lots.getrandbits(64) for _ in range(64)])
        size = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        assert size / len(index) < 200
