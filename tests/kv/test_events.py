from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynamo_core.contracts import KvCleared, KvEvent, KvRemoved, KvStored
from dynamo_core.kv.events import VllmEventTranslator
from dynamo_core.kv.hashing import sequence_hashes

SIZE = 4
FIELDS = (
    "block_hashes", "parent_block_hash", "token_ids", "block_size", "lora_id", "medium", "lora_name", "extra_keys", "group_idx",
    "kv_cache_spec_kind",
)  # fmt: skip
TOKENS = list(range(3 * SIZE))
OURS = tuple(sequence_hashes(TOKENS, SIZE))


def stored(hashes: list[Any], token_ids: list[int], parent: Any = None, **fields: Any) -> dict[str, Any]:
    event = dict.fromkeys(FIELDS)
    event.update(block_hashes=hashes, parent_block_hash=parent, token_ids=token_ids, block_size=SIZE, medium="GPU")  # type: ignore[arg-type]
    return {"type": "BlockStored", **event, **fields}


def removed(hashes: list[Any], **fields: Any) -> dict[str, Any]:
    return {"type": "BlockRemoved", "block_hashes": hashes, "medium": "GPU", "group_idx": None, **fields}


def batch(*events: Any, arrays: bool = False) -> bytes:
    return msgspec.msgpack.encode([1.0, [list(e.values()) if arrays else e for e in events], 0])


@pytest.fixture
def translator() -> VllmEventTranslator:
    return VllmEventTranslator(SIZE)


@pytest.mark.parametrize("arrays", [False, True])
@pytest.mark.parametrize("names", [[11, -12, 2**64 - 1], [b"a" * 32, b"b" * 32, b"c" * 32]])
def test_both_dialects_and_both_kinds_of_hash_are_understood(arrays: bool, names: list[Any]) -> None:
    translator = VllmEventTranslator(SIZE)
    assert translator.translate(batch(stored(names, TOKENS), arrays=arrays)) == [KvStored(OURS)]
    assert translator.translate(batch(removed(names[2:]), arrays=arrays)) == [KvRemoved(OURS[2:])]
    assert translator.translate(batch({"type": "AllBlocksCleared"}, arrays=arrays)) == [KvCleared()]


def test_short_arrays_of_older_engines_are_understood(translator: VllmEventTranslator) -> None:
    assert translator.translate(batch(["BlockStored", [1, 2, 3], None, TOKENS, SIZE, None])) == [KvStored(OURS)]
    assert translator.translate(batch(["BlockRemoved", [1]])) == [KvRemoved(OURS[:1])]


def test_a_child_is_named_after_its_parent(translator: VllmEventTranslator) -> None:
    translator.translate(batch(stored([1, 2], TOKENS[: 2 * SIZE])))
    assert translator.translate(batch(stored([3], TOKENS[2 * SIZE :], 2))) == [KvStored(OURS[2:])]


def test_a_block_of_an_unknown_parent_is_skipped(translator: VllmEventTranslator) -> None:
    assert translator.translate(batch(stored([3], TOKENS[:SIZE], 99))) == []
    assert translator.skipped == 1


def test_a_block_stored_twice_and_removed_once_stays(translator: VllmEventTranslator) -> None:
    event = stored([1, 2, 3], TOKENS)
    assert translator.translate(batch(event, event)) == [KvStored(OURS)]
    assert translator.translate(batch(removed([1, 2, 3]))) == []
    assert translator.translate(batch(removed([1, 2, 3]), removed([1]))) == [KvRemoved(OURS)]


def test_one_group_of_a_hybrid_model_is_kept(translator: VllmEventTranslator) -> None:
    groups = [
        stored([1, 2, 3], TOKENS, group_idx=0, kv_cache_spec_kind="sliding_window"),
        stored([1, 2, 3], TOKENS, group_idx=1, kv_cache_spec_kind="full_attention"),
        stored([1, 2, 3], TOKENS, group_idx=2, kv_cache_spec_kind="full_attention"),
    ]
    assert translator.translate(batch(*groups)) == [KvStored(OURS)]
    assert translator.translate(batch(removed([1], group_idx=0), removed([1], group_idx=2))) == []
    assert translator.translate(batch(removed([1], group_idx=1))) == [KvRemoved(OURS[:1])]


def test_without_kinds_group_0_is_kept_or_the_one_that_was_named() -> None:
    events = [stored([1, 2, 3], TOKENS, group_idx=0), stored([1, 2, 3], TOKENS, group_idx=1), removed([1], group_idx=1)]
    assert VllmEventTranslator(SIZE).translate(batch(*events)) == [KvStored(OURS)]
    named = VllmEventTranslator(SIZE, main_group=1).translate(batch(*events))
    assert named == [KvStored(OURS), KvRemoved(OURS[:1])]


def test_adapters_and_salts_are_hashed_as_a_router_hashes_them(translator: VllmEventTranslator) -> None:
    keys = [["lo", "tenant"], ["lo"], ["lo"]]
    first = stored([1, 2], TOKENS[: 2 * SIZE], lora_name="lo", lora_id=1, extra_keys=keys[:2])
    second = stored([3], TOKENS[2 * SIZE :], 2, lora_name="lo", lora_id=1, extra_keys=keys[2:])
    expected = tuple(sequence_hashes(TOKENS, SIZE, lora="lo", salt="tenant"))
    assert translator.translate(batch(first, second)) == [KvStored(expected[:2]), KvStored(expected[2:])]


def test_a_number_alone_keeps_adapters_apart(translator: VllmEventTranslator) -> None:
    events = [stored([name], TOKENS[:SIZE], lora_id=name) for name in (1, 2)] + [stored([3], TOKENS[:SIZE])]
    names = [event.seq_hashes for event in translator.translate(batch(*events)) if isinstance(event, KvStored)]
    assert len(set(names)) == 3


def test_images_never_pass_for_text(translator: VllmEventTranslator) -> None:
    plain = stored([1], TOKENS[:SIZE])
    image = stored([2], TOKENS[:SIZE], extra_keys=[[["image", 0]]])
    other = stored([3], TOKENS[:SIZE], extra_keys=[[["another", 0]]])
    embeds = stored([4], TOKENS[:SIZE], extra_keys=[[b"digest"]])
    names = [
        event.seq_hashes for event in translator.translate(batch(plain, image, other, embeds)) if isinstance(event, KvStored)
    ]
    assert len(set(names)) == 4
    assert names[0] == OURS[:1]


def test_tiers_are_counted_apart(translator: VllmEventTranslator) -> None:
    events = [stored([1, 2, 3], TOKENS), stored([1, 2, 3], [], medium="CPU", block_size=0), removed([1])]
    assert translator.translate(batch(*events)) == [KvStored(OURS), KvStored(OURS, "host"), KvRemoved(OURS[:1])]
    assert translator.translate(batch(removed([1], medium="CPU"))) == [KvRemoved(OURS[:1], "host")]


def test_incomplete_blocks_are_skipped(translator: VllmEventTranslator) -> None:
    assert translator.translate(batch(stored([1], TOKENS[:2], block_size=2))) == []
    assert translator.translate(batch(stored([1, 2, 3], TOKENS[:-1]))) == []


@pytest.mark.parametrize(
    "event",
    [{"type": "BlockMoved"}, ["BlockMoved", 1], [], 5, {"type": "BlockStored"}, removed(5), stored([[1]], [0] * 4)],  # type: ignore[arg-type]
)
def test_what_is_not_understood_clears(translator: VllmEventTranslator, event: Any) -> None:
    translator.translate(batch(stored([1, 2, 3], TOKENS)))
    assert translator.translate(batch(event)) == [KvCleared()]
    assert translator.unknown == 1
    assert translator.translate(batch(stored([1, 2, 3], TOKENS))) == [KvStored(OURS)]


@settings(max_examples=200)
@given(st.one_of(st.binary(max_size=40), st.builds(msgspec.msgpack.encode, st.lists(st.lists(st.integers(-9, 9) | st.text())))))
def test_any_bytes_at_all_are_survived(payload: bytes) -> None:
    VllmEventTranslator(SIZE).translate(payload)


class Naive:
    """Remembers every copy as a whole prompt prefix."""

    def __init__(self) -> None:
        self.copies: list[int] = []

    def known(self) -> set[int]:
        return set(self.copies)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["store", "remove", "clear"]), st.integers(0, 3), st.integers(0, 4)), max_size=50))
def test_what_is_known_is_what_a_naive_model_knows(steps: list[tuple[str, int, int]]) -> None:
    translator, naive = VllmEventTranslator(SIZE), Naive()
    known: set[int] = set()
    for what, family, index in steps:
        tokens = [family * 100 + i for i in range(5 * SIZE)]
        ours = sequence_hashes(tokens, SIZE)
        names = [family * 10 + i for i in range(5)]
        if what == "clear" and index == 0:
            naive.copies.clear()
            event: Any = {"type": "AllBlocksCleared"}
        elif what == "store":
            if index and ours[index - 1] not in naive.copies:
                index = 0
            naive.copies.append(ours[index])
            parent = names[index - 1] if index else None
            event = stored([names[index]], tokens[index * SIZE : (index + 1) * SIZE], parent)
        else:
            if ours[index] in naive.copies:
                naive.copies.remove(ours[index])
            event = removed([names[index]])
        _apply(known, translator.translate(batch(event)))
        assert known == naive.known()


def _apply(known: set[int], events: list[KvEvent]) -> None:
    for event in events:
        if isinstance(event, KvStored):
            known.update(event.seq_hashes)
        elif isinstance(event, KvRemoved):
            known.difference_update(event.seq_hashes)
        else:
            known.clear()
