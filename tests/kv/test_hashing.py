from __future__ import annotations

import random
from array import array
from collections.abc import Iterator
from typing import Any

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from dynamo_core.kv import hashing
from dynamo_core.kv.hashing import (
    SEED,
    PromptHashes,
    block_hash,
    block_hashes,
    chain,
    hash_seed,
    python_run_hashes,
    sequence_hashes,
)


@pytest.fixture(autouse=True, scope="module", params=["compiled", "python"])
def both_ways(request: pytest.FixtureRequest) -> Iterator[None]:
    if request.param == "compiled":
        pytest.importorskip("dynamo_core.kv._hashes", reason="built without a compiler")
        yield
    else:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(hashing, "run_hashes", python_run_hashes)
            yield


tokens = st.lists(st.integers(0, 2**32 - 1), max_size=70)


def naive(token_ids: list[int], size: int) -> list[int]:
    blocks = []
    for i in range(len(token_ids) // size):
        data = b"".join(t.to_bytes(4, "little") for t in token_ids[i * size : (i + 1) * size])
        blocks.append(xxhash.xxh3_64_intdigest(data, 1337))
    return blocks


@given(tokens, st.integers(1, 20))
def test_block_hashes_are_xxh3_of_the_little_endian_ids(token_ids: list[int], size: int) -> None:
    assert block_hashes(token_ids, size) == naive(token_ids, size)


@given(tokens, st.integers(1, 20))
def test_sequence_hashes_chain_the_block_hashes(token_ids: list[int], size: int) -> None:
    expected: list[int] = []
    for block in naive(token_ids, size):
        if expected:
            pair = expected[-1].to_bytes(8, "little") + block.to_bytes(8, "little")
            block = xxhash.xxh3_64_intdigest(pair, 1337)
        expected.append(block)
    assert sequence_hashes(token_ids, size) == expected


@given(tokens, st.integers(1, 8), st.integers(0, 70))
def test_a_chain_can_be_continued_anywhere(token_ids: list[int], size: int, cut: int) -> None:
    blocks = block_hashes(token_ids, size)
    head = chain(blocks[:cut])
    assert head + chain(blocks[cut:], head[-1] if head else None) == chain(blocks)


def test_hashes_are_dynamos() -> None:
    # compute_block_hash_for_seq(range(100, 200), 16) of ai-dynamo-runtime 1.6.1, without and with lora_name="ad"
    assert block_hashes(range(100, 132), 16, lora="ad") == [682217097734764133, 12420995870712062137]
    assert len(block_hashes(range(100, 200), 16)) == 6


def test_adapters_and_salts_change_every_hash() -> None:
    seeds = {hash_seed(), hash_seed("a"), hash_seed(None, "a"), hash_seed("a", "a"), hash_seed("a", "b"), hash_seed("b", "a")}
    assert len(seeds) == 6
    plain, salted = sequence_hashes(range(64), 16), sequence_hashes(range(64), 16, salt="t")
    assert not set(plain) & set(salted)
    assert block_hash(range(16), hash_seed(None, "t")) == salted[0]


def test_ids_out_of_range_are_refused() -> None:
    with pytest.raises(OverflowError):
        block_hashes([2**32], 1)


@given(tokens, st.integers(1, 5), st.lists(st.integers(0, 80), max_size=5))
def test_lazy_hashes_are_the_same_hashes(token_ids: list[int], size: int, looks: list[int]) -> None:
    prompt, expected = PromptHashes(token_ids, size, lora="a", salt="b"), sequence_hashes(token_ids, size, lora="a", salt="b")
    for look in looks:
        known = prompt.upto(look)
        assert known == expected[: len(known)]
        assert len(known) >= min(look, prompt.count)
    assert prompt.upto(prompt.count) == expected


@pytest.mark.parametrize("size", [*range(4, 132), 160, 239, 240, 241, 256, 512, 1023, 1024, 1025, 1088, 2049, 4096])
def test_compiled_hashes_are_those_of_xxhash(size: int) -> None:
    compiled = pytest.importorskip("dynamo_core.kv._hashes", reason="built without a compiler")
    lots = random.Random(size)
    for seed in (0, SEED, 2**64 - 1, lots.getrandbits(64)):
        data = memoryview(lots.randbytes(3 * size + size // 2))
        for parent in (None, 0, 2**64 - 1, lots.getrandbits(64)):
            assert compiled.run_hashes(data, size, seed, parent) == python_run_hashes(data, size, seed, parent)
        assert compiled.run_hashes(data[: size - 1], size, seed, None) == []


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ((b"1234", 3, 0, None), ValueError),
        ((b"1234", 0, 0, None), ValueError),
        ((b"1234", -4, 0, None), ValueError),
        ((b"1234", 4, 0, -1), OverflowError),
        ((b"1234", 4, 0, 2**64), OverflowError),
        ((b"1234", 4, 0, "1"), TypeError),
        (("1234", 4, 0, None), TypeError),
        ((memoryview(b"12345678")[::2], 4, 0, None), BufferError),
        ((b"1234", 4, 0), TypeError),
    ],
)
def test_wrong_arguments_are_errors(arguments: tuple[Any, ...], error: type[Exception]) -> None:
    compiled = pytest.importorskip("dynamo_core.kv._hashes", reason="built without a compiler")
    with pytest.raises(error):
        compiled.run_hashes(*arguments)


def test_arrays_are_hashed_as_lists_are() -> None:
    ids = array("I", range(70, 170))
    assert sequence_hashes(ids, 16) == sequence_hashes(list(ids), 16) == sequence_hashes(tuple(ids), 16)
    assert list(ids) == list(range(70, 170))
