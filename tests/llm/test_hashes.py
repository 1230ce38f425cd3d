"""Block hashes, compared with values that Dynamo 1.6.1 gave for the same arguments."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from dynamo_core.errors import InvalidRequest
from dynamo_core.kv import sequence_hashes
from dynamo_core.llm import compute_block_hash_for_seq

TOKENS = list(range(1, 14))
PLAIN = [14643705804678351452, 16777012769546811212, 483935686894639516]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, PLAIN),
        ({"is_eagle": True}, [1914873892905420881, 1929047464662796003, 8175084615354468756]),
        (
            {"block_mm_infos": [{"mm_objects": [{"mm_hash": 5, "offsets": []}]}, None, None]},
            [15706877295117281372, *PLAIN[1:]],
        ),
        (
            {"block_mm_infos": [{"mm_objects": [{"mm_hash": 9, "offsets": [[0, 1]]}, {"mm_hash": 5, "offsets": []}]}]},
            [235436700144873471, *PLAIN[1:]],
        ),
    ],
)
def test_hashes_are_dynamos(options: dict[str, Any], expected: list[int]) -> None:
    assert compute_block_hash_for_seq(TOKENS, 4, **options) == expected


def test_block_hashes_are_those_of_the_routers_chains() -> None:
    tokens = list(range(40))
    hashes = compute_block_hash_for_seq(tokens, 16)
    assert len(hashes) == 2
    assert hashes[0] == sequence_hashes(tokens, 16)[0]
    for names in ({"lora_name": "a"}, {"cache_namespace": "a"}):
        other = compute_block_hash_for_seq(tokens[:16], 16, **names)
        assert other != hashes[:1]
        assert compute_block_hash_for_seq([*tokens[:16], 0], 16, is_eagle=True, **names) != other


def test_a_block_that_lacks_its_last_token_has_no_hash() -> None:
    assert len(compute_block_hash_for_seq(TOKENS[:12], 4, is_eagle=True)) == 2
    assert compute_block_hash_for_seq([], 4, [{"mm_objects": []}]) == []


@pytest.mark.parametrize(
    "images", [[object(), None], [{"mm_objects": [{"mm_hash": -1}]}], [{"mm_hash": 1}], [{"mm_objects": [7]}]]
)
def test_what_says_nothing_of_images_is_refused(images: list[Any]) -> None:
    with pytest.raises(InvalidRequest, match="block_mm_infos must have"):
        compute_block_hash_for_seq(list(range(40)), 16, images)
    with pytest.raises(InvalidRequest, match="kv_block_size is 0"):
        compute_block_hash_for_seq([1], 0)


def test_arguments_are_in_dynamos_places() -> None:
    names = "tokens kv_block_size block_mm_infos lora_name is_eagle cache_namespace"
    assert list(inspect.signature(compute_block_hash_for_seq).parameters) == names.split()
