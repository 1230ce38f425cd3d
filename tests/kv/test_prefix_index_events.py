"""The index under what a network does to events: some are lost, some come twice, some change places.

A naive model, a set a worker, hears the same. Whatever happened, both must agree on who owns what, and once a worker's blocks are
told anew after a loss, on the truth.
"""

from __future__ import annotations

import random
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynamo_core.contracts import KvCleared, KvEvent, KvRemoved, KvStored
from dynamo_core.kv import BlockManager, PrefixIndex, PromptHashes, sequence_hashes, slots_of

pytestmark = pytest.mark.usefixtures("block_map")


WORKERS, FAMILIES, LENGTH = 5, 4, 40


def tokens(family: int, blocks: int) -> list[int]:
    """Of one token a block. All families share two blocks, the families of one parity eleven."""
    return [i if i < 2 else (family % 2) * 1000 + i if i < 11 else 5000 * (family + 1) + i for i in range(blocks)]


class Engine:
    """A real block manager that runs prompts and tells of what it keeps and evicts."""

    def __init__(self, blocks: int) -> None:
        self._blocks = BlockManager(blocks)
        self.truth: set[int] = set()

    def run(self, family: int, length: int) -> list[KvEvent]:
        hashes = sequence_hashes(tokens(family, min(length, self._blocks.total)), 1)
        found = self._blocks.match(hashes)
        self._blocks.hold(found)
        new = self._blocks.allocate(len(hashes) - len(found))
        self._blocks.store(new, hashes[len(found) :])
        self._blocks.release(found + new)
        events = self._blocks.take_events()
        apply(self.truth, events)
        return events

    def clear(self) -> list[KvEvent]:
        self._blocks.clear()
        self.truth.clear()
        return self._blocks.take_events()


def apply(owned: set[int], events: list[KvEvent]) -> None:
    for event in events:
        if isinstance(event, KvStored):
            owned.update(event.seq_hashes)
        elif isinstance(event, KvRemoved):
            owned.difference_update(event.seq_hashes)
        else:
            owned.clear()


def tell(index: PrefixIndex, slot: int, events: list[KvEvent]) -> None:
    for event in events:
        if isinstance(event, KvStored):
            index.stored(slot, event.seq_hashes)
        elif isinstance(event, KvRemoved):
            index.removed(slot, event.seq_hashes)
        elif isinstance(event, KvCleared):
            renew(index, slot)


def renew(index: PrefixIndex, slot: int) -> None:
    index.close(slot)
    assert index.open(10_000) == slot


def found(index: PrefixIndex, wanted: PromptHashes) -> dict[int, int]:
    return {slot: match.blocks for match in index.match(wanted) for slot in slots_of(match.slots)}


def agree(index: PrefixIndex, models: list[set[int]], *, whole: bool) -> None:
    """``whole``: no model has a block without those before it, so that every answer must be exact."""
    assert [index.size(slot) for slot in range(WORKERS)] == [len(model) for model in models]
    assert len(index) == len(set().union(*models))
    for family in range(FAMILIES):
        hashes = sequence_hashes(tokens(family, LENGTH), 1)
        answer = found(index, PromptHashes(tokens(family, LENGTH), 1))
        for slot, model in enumerate(models):
            exact = next((i for i, name in enumerate(hashes) if name not in model), LENGTH)
            end = answer.get(slot, 0)
            assert (end > 0) == (exact > 0)
            if whole:
                assert end == exact
            elif end:
                assert hashes[end - 1] in model
                assert end == LENGTH or hashes[end] not in model


steps = st.lists(
    st.tuples(
        st.integers(0, WORKERS - 1),
        st.sampled_from(["run"] * 12 + ["clear", "leave"]),
        st.integers(0, FAMILIES - 1),
        st.integers(1, LENGTH),
    ),
    max_size=40,
)


@settings(max_examples=1000, deadline=None)
@given(steps, st.integers(8, 80))
def test_with_every_event_in_order_the_index_is_the_truth(story: list[tuple[int, str, int, int]], blocks: int) -> None:
    index = PrefixIndex()
    engines = [Engine(blocks) for _ in range(WORKERS)]
    slots = [index.open(10_000) for _ in engines]
    for worker, what, family, length in story:
        if what == "leave":
            renew(index, slots[worker])
            engines[worker] = Engine(blocks)
        else:
            engine = engines[worker]
            tell(index, slots[worker], engine.clear() if what == "clear" else engine.run(family, length))
    # A cache of LRU order frees the end of a prefix first, so that it has no holes.
    agree(index, [engine.truth for engine in engines], whole=True)


@settings(max_examples=1500, deadline=None)
@given(steps, st.integers(8, 80), st.integers(0, 2**32))
def test_lost_repeated_and_reordered_events_leave_it_equal_to_a_naive_model(
    story: list[tuple[int, str, int, int]], blocks: int, seed: int
) -> None:
    lots, index = random.Random(seed), PrefixIndex()
    engines = [Engine(blocks) for _ in range(WORKERS)]
    heard: list[set[int]] = [set() for _ in engines]
    for slot in range(WORKERS):
        assert index.open(10_000) == slot
    late: list[tuple[int, list[KvEvent]]] = []
    for worker, what, family, length in story:
        engine = engines[worker]
        late.append((worker, engine.clear() if what == "clear" else engine.run(family, length)))
        if lots.random() < 0.2:
            late.append(late[-1])
        while late and lots.random() < 0.6:
            to, events = late.pop(lots.randrange(len(late)))
            if lots.random() < 0.2:
                continue
            tell(index, to, events)
            apply(heard[to], events)
    agree(index, heard, whole=False)
    for slot, engine in enumerate(engines):  # the loss is noticed: what is known is void, and told anew
        renew(index, slot)
        lots.shuffle(told := [KvStored((name,)) for name in sorted(engine.truth)])
        tell(index, slot, told)
    agree(index, [engine.truth for engine in engines], whole=True)


@settings(max_examples=300, deadline=None)
@given(steps, st.integers(1, 60), st.floats(0, 1))
def test_no_worker_has_more_than_its_limit(story: list[tuple[int, str, int, int]], limit: int, keep: float) -> None:
    index = PrefixIndex()
    for slot in range(WORKERS):
        assert index.open(limit) == slot
    for worker, what, family, length in story:
        index.stored(worker, sequence_hashes(tokens(family, length), 1), keep=keep)
        if what == "clear":
            index.removed(worker, sequence_hashes(tokens(family, length), 1)[length // 2 :])
        assert index.size(worker) <= limit
    assert len(index) <= sum(index.size(slot) for slot in range(WORKERS))
    for slot in range(WORKERS):
        index.close(slot)
    assert len(index) == 0


class Unhurried(PrefixIndex):
    """Sweeps nothing at once, and little for each change, as an index of millions of blocks does."""

    _AT_ONCE, _FOR_EACH = 0, 1


@settings(max_examples=500, deadline=None)
@given(steps, st.integers(8, 80))
def test_what_a_closed_slot_had_is_found_no_more_long_before_it_is_swept(
    story: list[tuple[int, str, int, int]], blocks: int
) -> None:
    index = Unhurried()
    engines = [Engine(blocks) for _ in range(WORKERS)]
    slots = [index.open(10_000) for _ in engines]
    for worker, what, family, length in story:
        if what == "run":
            for event in engines[worker].run(family, length):
                tell(index, slots[worker], [event])
        else:
            index.close(slots[worker])
            slots[worker] = index.open(10_000)
            assert len(set(slots)) == WORKERS
            engines[worker] = Engine(blocks)
    for family in range(FAMILIES):
        hashes = sequence_hashes(tokens(family, LENGTH), 1)
        answer = found(index, PromptHashes(tokens(family, LENGTH), 1))
        assert answer.keys() <= set(slots)
        for slot, engine in zip(slots, engines, strict=True):
            exact = next((i for i, name in enumerate(hashes) if name not in engine.truth), LENGTH)
            assert answer.get(slot, 0) == exact
            assert index.size(slot) == len(engine.truth)
            assert set(index.blocks(slot)) == engine.truth
    for name in range(3 * LENGTH * FAMILIES * WORKERS):  # traffic goes on
        index.stored(slots[0], [-1 - name % 7])
    assert len(index) == len(set().union(*(engine.truth for engine in engines), range(-7, 0)))


def test_closing_a_slot_looks_at_no_block_and_changes_sweep_in_proportion_to_themselves() -> None:
    index = PrefixIndex()
    small, large = index.open(10**6), index.open(10**6)
    index.stored(large, range(100_000))
    index.stored(small, range(99_990, 100_010))
    index.close(small)
    assert len(index) == 100_010
    assert found(index, PromptHashes.of([100_000])) == {}
    assert index.open(10**6) == 2, "the bit is still in use"
    for _ in range(100_010 // 400 + 1):
        index.stored(large, range(100))
    assert len(index) == 100_000
    assert index.open(10**6) == small


def test_slots_that_are_closed_during_a_sweep_wait_for_the_next_and_no_sweep_begins_anew() -> None:
    index = Unhurried()
    keeper = index.open(10**6)
    index.stored(keeper, range(1000))
    others = [index.open(10**6) for _ in range(20)]
    for slot in others:
        index.stored(slot, range(500, 1500))
    for slot in others:
        index.close(slot)
        index.stored(keeper, range(150))
        assert index.open(10**6) not in others[others.index(slot) :], "bits are free again after two sweeps at most"
    for _ in range(3 * 1500 // 150):
        index.stored(keeper, range(150))
    assert len(index) == 1000
    assert index.size(keeper) == 1000


def test_an_index_without_slots_is_empty_at_once() -> None:
    index = Unhurried()
    slots = [index.open(10**6) for _ in range(3)]
    for slot in slots:
        index.stored(slot, range(5000))
    for slot in slots:
        index.close(slot)
    assert len(index) == 0
    assert index.open(10) == 0


def test_at_its_limit_a_slot_keeps_what_others_share_with_it_and_of_that_the_beginning() -> None:
    index = PrefixIndex()
    other, slot = index.open(100), index.open(10)
    index.stored(other, [1, 2, 3])
    index.stored(slot, [1, 2, 3, 4, 5, 6, 7])
    index.stored(slot, [21, 22, 23, 24], keep=0.5)
    assert set(index.blocks(slot)) == {1, 2, 3, 21, 22}
    index.stored(slot, [31, 32, 33, 34, 35, 36], keep=0.2)
    assert set(index.blocks(slot)) == {1, 2}
    assert index.size(other) == 3


def test_names_that_no_prompt_has_do_no_harm() -> None:
    index = PrefixIndex()
    slot, other = index.open(10**6), index.open(10**6)
    index.stored(slot, [-1, 2**63, *range(98)])
    index.stored(other, [-1])
    assert index.size(slot) == 100
    index.removed(slot, [-1, -101])
    index.close(slot)
    assert len(index) == 1


def test_a_block_that_is_named_twice_in_one_removal_is_counted_once() -> None:
    index = PrefixIndex()
    slot, other = index.open(100), index.open(100)
    index.stored(slot, [1, 2, 3])
    index.stored(other, [3])
    index.removed(slot, [1, 1, 3, 3])
    assert (index.size(slot), index.blocks(slot)) == (1, (2,))
    assert (index.size(other), index.blocks(other)) == (1, (3,))


def test_a_block_takes_less_than_110_bytes_however_many_of_8_workers_have_it() -> None:
    for same in (True, False):
        tracemalloc.start()
        index = PrefixIndex()
        for slot in [index.open(1 << 20) for _ in range(8)]:
            lots = random.Random(0 if same else slot)
            for _ in range(80):
                index.stored(slot, [lots.getrandbits(64) for _ in range(64)])
        size = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        assert size / len(index) < 110
