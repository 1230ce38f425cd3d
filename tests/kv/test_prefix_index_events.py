"""The index under what a network does to events: some are lost, some come twice, some change places.

A naive model, a set a worker, hears the same. Whatever happened, both must agree on who owns what, and once a worker's blocks are
told anew after a loss, on the truth.
"""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynamo_core.contracts import KvCleared, KvEvent, KvRemoved, KvStored
from dynamo_core.kv import BlockManager, PrefixIndex, PromptHashes, sequence_hashes, slots_of

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
            index.clear(slot)


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
            index.close(slots[worker])
            assert index.open(10_000) == slots[worker]
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
        index.clear(slot)
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


def test_a_worker_leaves_in_time_proportional_to_its_own_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    index = PrefixIndex()
    small, large = index.open(10**6), index.open(10**6)
    index.stored(large, range(100_000))
    index.stored(small, range(99_990, 100_010))
    named: list[int] = []
    removed = PrefixIndex.removed

    def counting(self: PrefixIndex, slot: int, seq_hashes: list[int]) -> None:
        named.append(len(seq_hashes))
        removed(self, slot, seq_hashes)

    monkeypatch.setattr(PrefixIndex, "removed", counting)
    index.close(small)
    assert named == [20]
    assert len(index) == 100_000
