"""Prompts in remembered pieces have the ids that the tokenizer itself gives the whole."""

from __future__ import annotations

import asyncio
import json
from array import array
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dynamo_core.errors import InvalidRequest
from dynamo_core.serving.model_folder import AddedToken, ModelFolder
from dynamo_core.serving.prompt_encoder import PromptEncoder
from dynamo_core.serving.prompt_pieces import cut, cutting_tokens, proven
from dynamo_core.serving.tokenizer import Tokenizer, load_tokenizer

ModelPath = Callable[[str], Path]

KINDS = (
    "byte_level", "byte_level_split", "llama", "gemma", "metaspace_bytes", "bytes_unfused", "unigram", "word_piece", "words",
    "word_ends",
)  # fmt: skip
FRAGMENTS = (
    "<s>", "</s>", "<unk>", "<|end of turn|>", "<tool call>", "ŉ☃", "<", ">", "<s", "s>", "</", "|>", "<|end", " ", "  ", "\n",
    "\t", "▁", "Ġ", "the", " the", "quick brown", "isn't", "1234", "é", "e\u0301", "你好", "😀", "👩\u200d👧", "\u200b", "\x00",
    "\u3000", "a", "A",
)  # fmt: skip
TEXTS = st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=3), max_size=14).map("".join)


def load(folder: Path) -> tuple[Tokenizer, tokenizers.Tokenizer]:
    reference = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    return load_tokenizer(ModelFolder.load(folder)), reference


def everywhere(tokenizer: Tokenizer) -> tuple[str, ...]:
    """All tokens that may be cut before, without asking the tokenizer for a confirmation."""
    return cutting_tokens(tokenizer.added_tokens, [token.content for token in tokenizer.added_tokens])


@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_the_tokenizers_own_at_first_and_again(model_path: ModelPath, kind: str) -> None:
    tokenizer, reference = load(model_path(kind))
    cutting = everywhere(tokenizer)
    assert {"<s>", "</s>"} <= set(cutting)
    encoder = PromptEncoder(tokenizer, cutting)

    @given(TEXTS, st.booleans())
    @settings(max_examples=80, deadline=None)
    def check(text: str, special: bool) -> None:
        expected = reference.encode(text, add_special_tokens=special).ids
        for _ in range(2):
            found = encoder.encode(text, special)
            assert isinstance(found, array)
            assert found.tolist() == expected

    check()


ALPHABET = "<>|ab "
CONTENTS = st.text(ALPHABET, min_size=1, max_size=4).filter(lambda text: text.strip())
FLAGS = st.fixed_dictionaries(
    {name: st.sampled_from((False, False, True)) for name in ("normalized", "lstrip", "rstrip", "single_word", "special")}
)


@given(st.dictionaries(CONTENTS, FLAGS, min_size=1, max_size=5), st.lists(st.text(ALPHABET, max_size=10), min_size=8, max_size=8))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_whatever_tokens_are_added_only_harmless_ones_are_cut_before(added: dict[str, dict[str, bool]], texts: list[str]) -> None:
    """Tokens that overlap, strip, contain one another or want to stand alone, in texts full of their parts."""
    reference = tokenizers.Tokenizer(tokenizers.models.BPE(vocab={c: i for i, c in enumerate("<>|ab▁")}, merges=[]))
    reference.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(prepend_scheme="first")
    reference.add_tokens([tokenizers.AddedToken(content, **flags) for content, flags in added.items()])
    listed = [AddedToken(**entry) for entry in json.loads(reference.to_str())["added_tokens"]]
    cutting = cutting_tokens(listed, [token.content for token in listed])
    between = [token.join(texts[:3]) for token in added]
    for text in (*texts, *between):
        pieces = cut(text, cutting)
        assert "".join(pieces) == text
        ids = [i for piece in pieces for i in reference.encode(piece, add_special_tokens=False).ids]
        assert ids == reference.encode(text, add_special_tokens=False).ids, (text, pieces)


PARTS = st.lists(st.sampled_from(["<s>", "</s>", "[INST]", "<", "<s", "s>", "a", "<a>" * 40, "[x]" * 30, " "]), max_size=12)


@given(PARTS)
def test_pieces_begin_where_a_token_does_however_often_its_first_character_occurs(parts: list[str]) -> None:
    text, tokens = "".join(parts), ("<s>", "</s>", "[INST]")
    starts = [at for at in range(1, len(text)) if text.startswith(tokens, at)]
    assert cut(text, tokens) == [text[a:b] for a, b in pairwise((0, *starts, len(text))) if b > a]


def test_samples_refute_a_token_that_must_not_be_cut_before() -> None:
    reference = tokenizers.Tokenizer(tokenizers.models.BPE(vocab={"a": 0, "<x>": 1, " ": 2}, merges=[]))
    reference.add_tokens(
        [tokenizers.AddedToken("<x>", lstrip=True, normalized=False), tokenizers.AddedToken("<y>", normalized=False)]
    )
    assert proven(("<x>", "<y>"), lambda text: list(reference.encode(text, add_special_tokens=False).ids)) == ("<y>",)


def test_of_the_next_turn_only_what_is_new_is_encoded(model_path: ModelPath) -> None:
    tokenizer, _ = load(model_path("gemma"))
    encoder = PromptEncoder(tokenizer, everywhere(tokenizer))
    turns = ["<s>the quick brown fox", "</s>jumps over", "</s>the lazy dog"]
    for count in (1, 2, 3):
        before = encoder.counters.encoded_tokens
        encoder.encode("".join(turns[:count]), add_special_tokens=False)
        latest = tokenizer.encode(turns[count - 1], add_special_tokens=False)
        assert encoder.counters.encoded_tokens - before == len(latest)
    assert encoder.counters.reused_tokens > 0


def test_the_cache_keeps_within_its_bytes_and_what_is_used(model_path: ModelPath) -> None:
    tokenizer, _ = load(model_path("gemma"))
    encoder = PromptEncoder(tokenizer, ("<s>",), limit=20_000)
    often = "<s>the quick brown fox"
    encoder.encode(often)
    for number in range(200):
        encoder.encode(f"<s>{number} others")
        reused = encoder.counters.reused_tokens
        encoder.encode(often)
        assert encoder.counters.reused_tokens > reused
        assert 0 < encoder.counters.bytes <= 20_000
    encoder.encode("the " * 20_000)
    assert encoder.counters.bytes <= 20_000


def test_what_has_room_is_never_encoded_again(model_path: ModelPath) -> None:
    tokenizer, _ = load(model_path("gemma"))
    encoder = PromptEncoder(tokenizer, limit=160_000)
    prompts = [f"{number} {'word ' * 100}" for number in range(40)]
    for _ in range(3):
        for prompt in prompts:
            encoder.encode(prompt)
    assert 80_000 < encoder.counters.bytes < 160_000  # most of the room
    assert (encoder.counters.hits, encoder.counters.misses) == (80, 40)


def test_without_room_nothing_is_kept_and_nothing_is_cut(model_path: ModelPath) -> None:
    tokenizer, reference = load(model_path("gemma"))
    encoder = PromptEncoder(tokenizer, ("<s>",), limit=0)
    assert encoder.encode("<s>a<s>a", False).tolist() == reference.encode("<s>a<s>a", add_special_tokens=False).ids
    assert (encoder.counters.bytes, encoder.counters.reused_tokens) == (0, 0)


def test_a_prompt_is_the_callers_to_change(model_path: ModelPath) -> None:
    tokenizer, _ = load(model_path("gemma"))
    encoder = PromptEncoder(tokenizer)
    first = encoder.encode("the quick")
    expected = first.tolist()
    first[0] = 0
    assert encoder.encode("the quick").tolist() == expected


def test_half_a_surrogate_pair_is_the_clients_mistake(model_path: ModelPath) -> None:
    tokenizer, _ = load(model_path("gemma"))
    encoder = PromptEncoder(tokenizer)
    with pytest.raises(InvalidRequest, match="half of a surrogate pair"):
        encoder.encode("a\ud800")
    with pytest.raises(InvalidRequest, match="half of a surrogate pair"):
        tokenizer.pack_all(["a\ud800"])


class Watched:
    """A tokenizer that notes how often the event loop turned while it encoded a batch."""

    def __init__(self, tokenizer: Tokenizer, loop_characters: int) -> None:
        self._tokenizer = tokenizer
        self.loop_characters = loop_characters
        self.frame = tokenizer.frame
        self.pack = tokenizer.pack
        self.recall = tokenizer.recall
        self.turns = 0
        self.turns_meanwhile: list[int] = []

    def pack_all(self, texts: Sequence[str], add_special_tokens: bool = True) -> list[array[int]]:
        before = self.turns
        ids = self._tokenizer.pack_all(texts, add_special_tokens)
        self.turns_meanwhile.append(self.turns - before)
        return ids


async def test_half_a_surrogate_pair_in_a_long_prompt_as_well(model_path: ModelPath) -> None:
    tokenizer, _ = load(model_path("gemma"))
    watched: Any = Watched(tokenizer, loop_characters=1000)
    for text in ("the quick " * 15_000 + "\ud800", "the quick " * 30_000 + "\ud800"):  # the longer one goes to a thread
        with pytest.raises(InvalidRequest, match="half of a surrogate pair"):
            await PromptEncoder(watched).encode_all((text,), add_special_tokens=False)


@pytest.mark.parametrize("kind", ["byte_level", "unigram"])  # one for each library
async def test_the_event_loop_turns_while_a_long_prompt_is_encoded(model_path: ModelPath, kind: str) -> None:
    tokenizer, reference = load(model_path(kind))
    watched: Any = Watched(tokenizer, loop_characters=1000)
    encoder = PromptEncoder(watched)
    text = " ".join(f"the {number} quick brown foxes" for number in range(40_000))
    encoding = asyncio.ensure_future(encoder.encode_all((text, "short")))
    while not encoding.done():
        watched.turns += 1
        await asyncio.sleep(0)
    long, short = encoding.result()
    assert watched.turns_meanwhile[0] > 5
    assert long.tolist() == reference.encode(text).ids
    assert short.tolist() == reference.encode("short").ids


async def test_a_short_prompt_stays_on_the_loop(model_path: ModelPath) -> None:
    tokenizer, reference = load(model_path("byte_level"))
    watched: Any = Watched(tokenizer, loop_characters=1000)
    (found,) = await PromptEncoder(watched).encode_all(("the quick brown fox",))
    assert found.tolist() == reference.encode("the quick brown fox").ids
    assert watched.turns_meanwhile == []


@pytest.mark.skipif(find_spec("dynamo_core.serving._word_cache") is None, reason="built without a compiler")
async def test_a_long_prompt_of_known_words_stays_on_the_loop(model_path: ModelPath) -> None:
    tokenizer, reference = load(model_path("gemma"))
    watched: Any = Watched(tokenizer, loop_characters=1000)
    encoder = PromptEncoder(watched, limit=0)
    new = " ".join(f"thing{number}" for number in range(2000))
    known = "the quick brown fox " * 500
    await encoder.encode_all((known,), add_special_tokens=False)
    watched.turns_meanwhile.clear()
    for text, threads in ((known, 0), (known + new[:300], 0), (known + new, 1), (known * 40, 1)):
        for special in (False, True):
            (found,) = await encoder.encode_all((text,), add_special_tokens=special)
            assert found.tolist() == reference.encode(text, add_special_tokens=special).ids
            assert len(watched.turns_meanwhile) == threads, text[-20:]
            watched.turns_meanwhile.clear()
    await encoder.encode_all((known, known), add_special_tokens=False)
    assert len(watched.turns_meanwhile) == 2
