from __future__ import annotations

from array import array

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from dynamo_core.kv.hashing import HashCache, PromptHashes, block_hash, block_hashes, chain, hash_seed, sequence_hashes

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


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 120), st.sampled_from([None, "t"]), st.integers(0, 60)), max_size=12),
    st.integers(1, 3),
    st.sampled_from([2, 6, 1000]),
)
def test_hashes_from_the_cache_are_the_same_hashes(
    prompts: list[tuple[int, int, str | None, int]], size: int, limit: int
) -> None:
    cache = HashCache(limit)
    for branch, length, salt, look in prompts:
        token_ids = [position if position < 40 else branch * 1000 + position for position in range(length)]
        prompt, expected = PromptHashes(token_ids, size, salt=salt, cache=cache), sequence_hashes(token_ids, size, salt=salt)
        known = prompt.upto(look)
        assert len(known) >= min(look, prompt.count)
        assert known == expected[: len(known)]
        assert prompt.upto(prompt.count) == expected
        assert len(cache) <= limit


def test_a_prefix_that_was_seen_is_looked_up_and_not_hashed(monkeypatch: pytest.MonkeyPatch) -> None:
    cache, size = HashCache(), 4
    earlier = list(range(100 * size))
    assert len(PromptHashes(earlier, size, cache=cache).upto(100)) == 100
    computed: list[int] = []
    compute = PromptHashes._compute
    monkeypatch.setattr(
        PromptHashes, "_compute", lambda self, data: (computed.append(len(data) // 4 // size), compute(self, data))[1]
    )
    turn = PromptHashes([*earlier, *range(7000, 7000 + 10 * size)], size, cache=cache)
    assert turn.upto(110) == sequence_hashes([*earlier, *range(7000, 7000 + 10 * size)], size)
    assert computed == [110 - 96]  # what is behind the last whole chunk of the earlier prompt


def test_arrays_are_hashed_as_lists_are() -> None:
    ids = array("I", range(70, 170))
    assert sequence_hashes(ids, 16) == sequence_hashes(list(ids), 16) == sequence_hashes(tuple(ids), 16)
    assert list(ids) == list(range(70, 170))
