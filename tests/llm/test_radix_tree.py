"""The tree of prefixes against a naive model, and what it takes for events."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamo_core.errors import InvalidRequest
from dynamo_core.llm import RadixTree, compute_block_hash_for_seq

HASHES = compute_block_hash_for_seq(list(range(1, 13)), 4)


def stored(parent: int | None, *blocks: tuple[int, int], rank: int = 0) -> bytes:
    told = [{"block_hash": name, "tokens_hash": tokens} for name, tokens in blocks]
    return json.dumps({"event_id": 0, "data": {"stored": {"parent_hash": parent, "blocks": told}}, "dp_rank": rank}).encode()


def removed(*names: int, rank: int = 0) -> bytes:
    return json.dumps({"event_id": 0, "data": {"removed": {"block_hashes": names}}, "dp_rank": rank}).encode()


def cleared() -> bytes:
    return b'{"event_id": 0, "data": "cleared", "dp_rank": 0}'


CHAIN = tuple(zip((100, 101, 102), HASHES, strict=True))


def test_events_say_who_has_which_prefix() -> None:
    tree = RadixTree()
    tree.apply_event(7, stored(None, *CHAIN))
    tree.apply_event(8, stored(None, CHAIN[0], rank=1))
    assert tree.find_matches(HASHES).scores == {(7, 0): 3, (8, 1): 1}
    assert tree.find_matches(HASHES, early_exit=True).scores == {(7, 0): 3, (8, 1): 1}
    assert (tree.find_matches(HASHES[1:]).scores, tree.find_matches([]).scores) == ({}, {})
    tree.apply_event(7, removed(101))
    assert tree.find_matches(HASHES).scores == {(7, 0): 1, (8, 1): 1}
    tree.apply_event(7, stored(100, CHAIN[1]))
    assert tree.find_matches(HASHES).scores == {(7, 0): 2, (8, 1): 1}
    tree.apply_event(7, cleared())
    assert tree.find_matches(HASHES).scores == {(8, 1): 1}
    tree.clear_all_blocks(8)
    tree.remove_worker(9)
    assert (tree.find_matches(HASHES).scores, tree.dump_tree_as_events()) == ({}, [])


def test_a_block_that_is_there_twice_goes_with_its_last_name() -> None:
    tree = RadixTree()
    tree.apply_event(7, stored(None, *CHAIN))
    tree.apply_event(7, stored(None, *((name + 100, tokens) for name, tokens in CHAIN)))
    tree.apply_event(7, removed(100))
    assert tree.find_matches(HASHES).scores == {(7, 0): 3}
    tree.apply_event(7, removed(201))
    assert tree.find_matches(HASHES).scores == {(7, 0): 1}


def test_a_name_that_is_given_anew_takes_what_followed_it_along() -> None:
    tree = RadixTree()
    tree.apply_event(7, stored(None, *CHAIN))
    tree.apply_event(7, stored(None, (101, HASHES[0])))
    assert tree.find_matches(HASHES).scores == {(7, 0): 1}
    tree.apply_event(7, removed(101))
    assert tree.find_matches(HASHES).scores == {(7, 0): 1}
    tree.apply_event(7, stored(100, (100, 5)))  # a block cannot follow itself
    assert tree.find_matches([*HASHES[:1], 5]).scores == {}


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        (b"{}", "event_id"),
        (b"\xff", "that is no KV cache event"),
        (b'{"event_id": 0, "data": "dropped"}', "its data is 'dropped'"),
        (b'{"event_id": 0, "data": {}}', "neither stored nor removed"),
        (stored(999, (1, 1)), "has no block 999, which is to be a parent"),
        (removed(100, 555), "has no block 555, which is to be removed"),
        (stored(100, (5, 5), (5, 6)), "one block_hash twice"),
        (stored(100, (5, -1)), "64 bits"),
    ],
)
def test_what_is_no_event_changes_nothing(event: bytes, expected: str) -> None:
    tree = RadixTree()
    tree.apply_event(7, stored(None, *CHAIN))
    before = tree.dump_tree_as_events()
    with pytest.raises(InvalidRequest, match=expected):
        tree.apply_event(7, event)
    assert tree.dump_tree_as_events() == before


class Naive:
    """Of each rank a map from names to (tokens, parent's name)."""

    def __init__(self) -> None:
        self.known: dict[tuple[int, int], dict[int, tuple[int, int | None]]] = {}

    def path(self, owner: tuple[int, int], name: int | None) -> tuple[int, ...]:
        if name is None:
            return ()
        tokens, parent = self.known[owner][name]
        return (*self.path(owner, parent), tokens)

    def stored(self, owner: tuple[int, int], parent: int | None, blocks: list[tuple[int, int]]) -> bool:
        known = self.known.setdefault(owner, {})
        if (parent is not None and parent not in known) or len({name for name, _ in blocks}) != len(blocks):
            return False
        path = self.path(owner, parent)
        paths = [(*path, *(tokens for _, tokens in blocks[: place + 1])) for place in range(len(blocks))]
        self.drop(owner, [n for (n, _), new in zip(blocks, paths, strict=True) if n in known and self.path(owner, n) != new])
        if parent is not None and parent not in known:
            return True
        for name, tokens in blocks:
            known.setdefault(name, (tokens, parent))
            parent = name
        return True

    def removed(self, owner: tuple[int, int], names: list[int]) -> bool:
        if any(name not in self.known.get(owner, {}) for name in names):
            return False
        self.drop(owner, names)
        return True

    def drop(self, owner: tuple[int, int], names: list[int]) -> None:
        known = self.known.get(owner, {})
        for name in names:
            known.pop(name, None)
        while lost := [name for name, (_, parent) in known.items() if parent is not None and parent not in known]:
            for name in lost:
                del known[name]

    def scores(self, sequence: list[int]) -> dict[tuple[int, int], int]:
        found = {}
        for owner, known in self.known.items():
            paths = {self.path(owner, name) for name in known}
            length = 0
            while length < len(sequence) and tuple(sequence[: length + 1]) in paths:
                length += 1
            if length:
                found[owner] = length
        return found


NAMES = st.integers(0, 7)
TOKENS = st.integers(0, 2)
BLOCKS = st.lists(st.tuples(NAMES, TOKENS), min_size=1, max_size=4)
STEPS = st.one_of(
    st.tuples(st.just("stored"), st.none() | NAMES, BLOCKS),
    st.tuples(st.just("removed"), st.lists(NAMES, min_size=1, max_size=2)),
    st.tuples(st.sampled_from(["cleared", "gone"])),
)


@given(st.lists(st.tuples(st.integers(1, 2), st.integers(0, 1), STEPS), max_size=25), st.lists(TOKENS, min_size=1, max_size=5))
def test_the_tree_is_what_a_naive_model_says(steps: list[Any], asked: list[int]) -> None:
    tree, naive = RadixTree(), Naive()
    for worker, rank, (kind, *arguments) in steps:
        try:
            if kind == "stored":
                tree.apply_event(worker, stored(arguments[0], *arguments[1], rank=rank))
            elif kind == "removed":
                tree.apply_event(worker, removed(*arguments[0], rank=rank))
            elif kind == "cleared":
                tree.apply_event(worker, cleared())
            else:
                tree.remove_worker(worker)
        except InvalidRequest:
            taken = False
        else:
            taken = True
        owner = (worker, rank)
        if kind == "stored":
            assert taken == naive.stored(owner, *arguments)
        elif kind == "removed":
            assert taken == naive.removed(owner, *arguments)
        else:
            naive.known = {known: blocks for known, blocks in naive.known.items() if known[0] != worker}
        assert tree.find_matches(asked).scores == naive.scores(asked)
    again = RadixTree()
    for text in tree.dump_tree_as_events():
        told = json.loads(text)
        again.apply_event(told["worker_id"], json.dumps(told["event"]).encode())
    assert again.dump_tree_as_events() == tree.dump_tree_as_events()
    assert again.find_matches(asked) == tree.find_matches(asked)
