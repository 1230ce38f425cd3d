"""The compiled map beside the one in Python: whatever is done to both, they say the same, in the same order."""

from __future__ import annotations

import random
import sys
import time
from array import array
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynamo_core.kv.block_map import BlockMap, PythonBlockMap, multiples, new_block_map, python_multiples

_block_map: Any = pytest.importorskip("dynamo_core.kv._block_map", reason="built without a compiler")
FACTOR = 1
NAMES = [*range(40), *(name << 58 for name in range(1, 60, 5)), 2**64 - 1, 2**63, 2**63 - 1]
"""With this factor, names below 2⁵⁶ all want the first place."""

names = st.lists(st.sampled_from(NAMES), max_size=30)
bits = st.sampled_from([1 << slot for slot in (0, 1, 2, 9, 62, 63, 64, 200)])
steps = st.lists(
    st.one_of(
        st.tuples(st.just("add"), bits, names),
        st.tuples(st.just("take"), bits, names),
        st.tuples(st.just("strip"), st.integers(1, 2**201), names),
        st.tuples(st.just("dispensable"), bits, st.integers(0, 50)),
        st.tuples(st.just("clear"), bits, names),
    ),
    max_size=60,
)


def everything(blocks: BlockMap) -> tuple[Any, ...]:
    return len(blocks), blocks.hashes(), [blocks.get(name) for name in [*NAMES, 41]], blocks.hashes(6), blocks.hashes(1 << 200)


def do(blocks: BlockMap, what: str, owner: int, given: Any) -> Any:
    if what == "add":
        return blocks.add(owner, given)
    if what == "take":
        return blocks.take(owner, given, ((1 << 201) - 1) & ~owner)
    if what == "strip":
        return blocks.take(owner, given, ~owner)
    if what == "dispensable":
        return [blocks.dispensable(owner, others, given) for others in (0, 7, 1 << 64)]
    return blocks.clear()


@settings(max_examples=400, deadline=None)
@given(steps)
def test_they_agree(story: list[tuple[str, int, Any]]) -> None:
    compiled, python, packed = _block_map.BlockMap(FACTOR), PythonBlockMap(), _block_map.BlockMap(FACTOR)
    for what, owner, given_ in story:
        as_it_comes = given_ if isinstance(given_, int) else array("Q", given_)
        assert do(compiled, what, owner, given_) == do(python, what, owner, given_) == do(packed, what, owner, as_it_comes)
        assert everything(compiled) == everything(python) == everything(packed)


def test_names_that_differ_in_their_upper_bits_only_do_not_meet() -> None:
    blocks = new_block_map()
    begun = time.process_time()
    assert blocks.add(1, [name << 44 for name in range(30_000)]) == 30_000
    assert time.process_time() - begun < 0.1


def test_what_a_sequence_does_while_it_is_read_does_no_harm() -> None:
    blocks = _block_map.BlockMap(FACTOR)
    blocks.add(1, [1, 2])

    class Sequence:
        def __iter__(self) -> Iterator[int]:
            blocks.clear()
            return iter([1])

        def __getitem__(self, at: int) -> int:
            raise IndexError

        def __len__(self) -> int:
            return 1

    assert (blocks.take(1, Sequence(), 0), len(blocks)) == (0, 0)
    assert (blocks.add(1, Sequence()), len(blocks)) == (1, 1)


def test_half_of_a_run_is_never_noted() -> None:
    blocks = _block_map.BlockMap(FACTOR)
    for method, rest in (("add", ()), ("take", (0,))):
        blocks.add(2, [1])
        with pytest.raises(TypeError):
            getattr(blocks, method)(2, [1, 5, "x"], *rest)
        assert blocks.hashes() == [1]


def test_they_agree_while_caches_fill_and_empty() -> None:
    lots = random.Random(1)
    compiled, python = _block_map.BlockMap(FACTOR), PythonBlockMap()
    held: list[list[int]] = []
    for turn in range(600):
        owner = 1 << lots.choice((0, 1, 70))
        if turn % 200 < 120 or not held:
            run = [lots.getrandbits(64) for _ in range(lots.randrange(1, 200))]
            if held and lots.random() < 0.5:
                run = held[-1][: len(run) // 2] + run
            held.append(run)
            assert compiled.add(owner, run) == python.add(owner, run)
        else:
            run = held.pop(lots.randrange(len(held)))
            for one in (1, 2, 1 << 70):
                assert compiled.take(one, run, ~one) == python.take(one, run, ~one)
    assert len(compiled) == len(python) > 1000
    assert compiled.hashes() == python.hashes()
    assert compiled.hashes(2) == python.hashes(2)
    for run in held:
        compiled.take(-1, run, 0)
    assert (len(compiled), compiled.hashes()) == (0, [])


def test_the_compiled_one_is_used() -> None:
    assert isinstance(new_block_map(), _block_map.BlockMap)
    assert multiples is _block_map.multiples


def test_runs_may_be_any_sequence() -> None:
    blocks = _block_map.BlockMap(FACTOR)
    assert (blocks.add(1, (1, 2)), blocks.add(1, range(2, 4)), blocks.add(1, [True])) == (2, 1, 0)
    assert (blocks.take(1, range(9), 0), len(blocks)) == (3, 0)
    assert (blocks.get(1), blocks.take(1, [1], 0), blocks.hashes()) == (0, 0, [])
    for other in (b"\1\2", array("B", [1, 2]), array("I", [1, 2]), memoryview(array("Q", [1, 9, 2, 9]))[::2]):
        assert (blocks.add(1, other), blocks.hashes()) == (2, [1, 2])
        blocks.clear()
    shifted = memoryview(b"." + array("Q", [1, 2]).tobytes())[1:].cast("Q")
    assert (blocks.add(1, shifted), blocks.hashes()) == (2, [1, 2])
    blocks.clear()
    square = memoryview(array("Q", [1, 2, 3, 4])).cast("B").cast("Q", (2, 2))
    with pytest.raises(NotImplementedError):
        blocks.add(1, square)
    assert len(blocks) == 0


def test_nothing_may_be_added_to_nothing() -> None:
    blocks = _block_map.BlockMap(FACTOR)
    for _ in range(2):
        assert (blocks.add(1, []), blocks.take(1, [1], 0), blocks.get(1), len(blocks)) == (0, 0, 0, 0)
        blocks.add(1, [1])
        blocks.clear()


def test_an_array_may_change_again_afterwards() -> None:
    blocks, hashes = _block_map.BlockMap(FACTOR), array("Q", [8, 9])
    for use in (lambda: blocks.add(1, hashes), lambda: blocks.take(1, hashes, 0), lambda: multiples(hashes, 8)):
        use()
        hashes.append(16)  # a BufferError while it is lent
    with pytest.raises(TypeError):
        blocks.add("", hashes)
    hashes.append(24)
    assert multiples(hashes, 8) == array("Q", [8, 16, 16, 16, 24])


@given(names, st.integers(1, 2**64 - 1))
def test_multiples_are_the_same(hashes: list[int], of: int) -> None:
    for divisor in (of, 8, 1):
        assert multiples(hashes, divisor) == multiples(array("Q", hashes), divisor) == python_multiples(hashes, divisor)


@pytest.mark.parametrize("given_", [((1, "x"), 8), ((1,), "8"), (1, 8), ((1,),)])
def test_multiples_of_anything_else_are_a_type_error(given_: tuple[Any, ...]) -> None:
    with pytest.raises(TypeError):
        _block_map.multiples(*given_)
    with pytest.raises(ZeroDivisionError):
        _block_map.multiples((1,), 0)


@pytest.mark.parametrize(
    ("method", "given_"),
    [
        ("add", (1, ["1"])), ("add", (1.0, [1])), ("add", (True, [1])), ("add", (1, 1)), ("add", (1,)), ("take", (1, [None], 0)),
        ("take", (1, [1], "")), ("take", ("", [1], 1)), ("hashes", ("",)), ("dispensable", (1, "", 1)),
        ("dispensable", (1, 2, "")), ("get", ("1",)),
    ],
)  # fmt: skip
def test_anything_else_is_a_type_error_and_does_nothing(method: str, given_: tuple[Any, ...]) -> None:
    blocks = _block_map.BlockMap(FACTOR)
    blocks.add(2, [1])
    with pytest.raises(TypeError):
        getattr(blocks, method)(*given_)
    assert (len(blocks), blocks.get(1)) == (1, 2)


def test_owners_are_held_once_for_each_block_and_given_back() -> None:
    owner, rest = 1 << 100, 1 << 101
    before = sys.getrefcount(owner)
    blocks = _block_map.BlockMap(FACTOR)
    for _ in range(20):
        blocks.add(owner, range(1000))
        assert sys.getrefcount(owner) == before + 1000
        blocks.add(rest, range(500))
        blocks.take(owner, range(900), ~owner)
        assert sys.getrefcount(owner) == before + 100
        blocks.dispensable(owner, rest, 50)
        blocks.take(rest, range(1000), ~rest)
        blocks.clear()
        assert sys.getrefcount(owner) == before
    blocks.add(owner, range(1000))
    del blocks
    assert sys.getrefcount(owner) == before
