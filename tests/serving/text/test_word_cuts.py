"""Where text may be cut, and that remembered words have the ids of the whole, for tokenizers of every kind."""

from __future__ import annotations

import importlib.util
import json
import logging
import random
import sys
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, trainers

from dynamo_core.serving import tokenizer as module
from dynamo_core.serving.model_folder import ModelFolder, TokenizerHeader
from dynamo_core.serving.tokenizer import Tokenizer, load_tokenizer
from dynamo_core.serving.word_cuts import WordCuts, word_cuts

ModelPath = Callable[[str], Path]
Change = Callable[[tokenizers.Tokenizer], None]
COMPILED = importlib.util.find_spec("dynamo_core.serving._word_cache") is not None
compiled = pytest.mark.skipif(not COMPILED, reason="the package was built without a compiler")


def read(folder: Path) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))


@pytest.fixture
def made(model_path: ModelPath, tmp_path: Path) -> Callable[..., Path]:
    """A fixture's folder again, with more merges, another field of the model, or any other change."""

    def make(name: str, *merges: tuple[str, str], change: Change | None = None, **model: Any) -> Path:
        content = json.loads((model_path(name) / "tokenizer.json").read_text())
        vocabulary = content["model"]["vocab"]
        for left, right in merges:
            for token in (left, right, left + right):
                vocabulary.setdefault(token, len(vocabulary))
            content["model"]["merges"].append([left, right])
        content["model"] |= model
        tokenizer = tokenizers.Tokenizer.from_str(json.dumps(content))
        if change is not None:
            change(tokenizer)
        tokenizer.save(str(tmp_path / "tokenizer.json"))
        return tmp_path

    return make


def found(folder: Path, header: TokenizerHeader | None = None) -> WordCuts | None:
    reference = read(folder)
    return word_cuts(
        reference,
        header or ModelFolder.load(folder).tokenizer_header(),
        lambda text, special: array("I", reference.encode(text, add_special_tokens=special).ids),
    )


def cuts(folder: Path) -> WordCuts:
    result = found(folder)
    assert result is not None
    return result


def left_out(folder: Path) -> set[int]:
    return {*range(0x21, 0x7F), *range(0x80, 0xC0)} - set(cuts(folder).before)


NAMED = set(b">df")
"""What the fixtures' added tokens take away: they end in >, and one is <|end of turn|>."""
MARK = "▁".encode()[-1]


@pytest.mark.parametrize("name", ["gemma", "llama", "metaspace_bytes", "bytes_unfused"])
def test_text_may_be_cut_after_all_but_what_stands_before_a_space_in_an_added_token(model_path: ModelPath, name: str) -> None:
    assert left_out(model_path(name)) == {*NAMED, MARK}


def test_a_byte_level_vocabulary_has_no_mark_that_stands_for_a_space(model_path: ModelPath) -> None:
    for name in ("byte_level", "byte_level_split"):
        assert left_out(model_path(name)) == {*NAMED, *b"l", "☃".encode()[-1]}  # of <tool call> and ŉ☃


def test_a_cut_that_a_token_reaches_over_is_none(made: Callable[..., Path]) -> None:
    assert left_out(made("gemma", ("k▁", "e"))) == {*NAMED, MARK, *b"k"}
    assert left_out(made("gemma", ("k", "▁▁▁"), ("🤍", "▁"))) == {*NAMED, MARK, *b"k", "🤍".encode()[-1]}
    assert left_out(made("byte_level", ("k", "Ġ"), ("Ã", "©Ġ"))) - left_out(made("byte_level")) == {*b"k", 0xA9}


def test_a_token_that_reaches_over_a_cut_is_found_beyond_a_gap_in_the_ids(made: Callable[..., Path]) -> None:
    folder = made("gemma", ("▁", "q"), ("k", "▁q"))
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"]["vocab"]["k▁q"] = 100_000
    (folder / "tokenizer.json").write_text(json.dumps(content))
    assert left_out(folder) == {*NAMED, MARK, *b"k"}
    assert len(cuts(folder).lengths) < 1000


def test_a_cut_that_changes_how_its_sides_are_split_is_none(made: Callable[..., Path]) -> None:
    def apart(tokenizer: tokenizers.Tokenizer) -> None:
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("k(?= )"), "isolated")

    def replaced(tokenizer: tokenizers.Tokenizer) -> None:
        apart(tokenizer)
        tokenizer.normalizer = None

    assert left_out(made("gemma", ("d", "k"), change=replaced)) >= {*b"k"}
    assert not left_out(made("gemma", ("d", "k"), change=apart)) & {*b"k"}  # there are no spaces when the pattern is tried


def test_whitespace_of_several_bytes_is_no_end_where_added_tokens_take_it(made: Callable[..., Path]) -> None:
    ends = {space.encode()[-1] for space in map(chr, range(0x80, 0x3001)) if space.isspace()}
    assert len(ends) == 16
    for flags in ({"lstrip": True}, {"rstrip": True}):
        token = AddedToken("<mask>", normalized=False, **flags)
        folder = made("byte_level", change=lambda tokenizer, token=token: tokenizer.add_tokens([token]))
        assert left_out(folder) >= ends


def spoilt_normalizer(*steps: normalizers.Normalizer) -> Change:
    def change(tokenizer: tokenizers.Tokenizer) -> None:
        tokenizer.normalizer = normalizers.Sequence([*steps])

    return change


def spoilt_splitting(step: pre_tokenizers.PreTokenizer) -> Change:
    def change(tokenizer: tokenizers.Tokenizer) -> None:
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([step, pre_tokenizers.ByteLevel()])

    return change


@pytest.mark.parametrize("name", ["unigram", "word_piece", "words", "word_ends"])
def test_tokenizers_of_other_kinds_are_left_alone(model_path: ModelPath, name: str) -> None:
    assert found(model_path(name)) is None


@pytest.mark.parametrize(
    "model",
    [
        {"dropout": 0.1},
        {"continuing_subword_prefix": "##"},
        {"end_of_word_suffix": "</w>"},
        {"ignore_merges": True},
        {"unk_token": None, "byte_fallback": False},
    ],
    ids=lambda model: next(iter(model)),
)
def test_a_model_that_makes_words_otherwise_is_left_alone(made: Callable[..., Path], model: dict[str, Any]) -> None:
    folder = made("gemma")
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"] |= model
    if "continuing_subword_prefix" in model:
        content["model"]["merges"] = []
    (folder / "tokenizer.json").write_text(json.dumps(content))
    assert found(folder) is None


@pytest.mark.parametrize(
    "change",
    [
        spoilt_normalizer(normalizers.NFKC()),
        spoilt_normalizer(normalizers.NFC(), normalizers.NFKD()),
        spoilt_normalizer(normalizers.Lowercase()),
        spoilt_normalizer(normalizers.Strip()),
        spoilt_normalizer(normalizers.Replace("x", "y")),
        spoilt_normalizer(normalizers.Replace(Regex(" "), "▁")),
        spoilt_splitting(pre_tokenizers.Whitespace()),
        spoilt_splitting(pre_tokenizers.BertPreTokenizer()),
        spoilt_splitting(pre_tokenizers.Split(" ", "removed")),
        spoilt_splitting(pre_tokenizers.Punctuation("removed")),
    ],
)
def test_steps_that_change_or_drop_characters_are_left_alone(made: Callable[..., Path], change: Change) -> None:
    assert found(made("byte_level", change=change)) is None


def test_a_vocabulary_that_leaves_characters_out_is_left_alone(made: Callable[..., Path]) -> None:
    folder = made("byte_level")
    content = json.loads((folder / "tokenizer.json").read_text())
    del content["model"]["vocab"]["Á"]  # 0xC1, which UTF-8 never has
    content["model"]["merges"] = []
    (folder / "tokenizer.json").write_text(json.dumps(content))
    assert found(folder) is not None
    del content["model"]["vocab"]["~"]
    (folder / "tokenizer.json").write_text(json.dumps(content))
    assert found(folder) is None
    content["model"]["unk_token"] = "<unk>"
    (folder / "tokenizer.json").write_text(json.dumps(content))
    assert found(folder) is not None


def test_added_tokens_that_no_letter_may_touch_are_left_alone(made: Callable[..., Path]) -> None:
    """Some normalizers put a space before them as well: then it is the word before that may not end in a letter."""
    token = AddedToken("word", single_word=True, normalized=True)
    assert found(made("llama", change=lambda tokenizer: tokenizer.add_tokens([token]))) is None


def test_what_leaves_no_cut_after_the_context_or_most_letters_is_left_alone(made: Callable[..., Path]) -> None:
    assert found(made("gemma", ("a", "▁"))) is None
    twelve = [(letter, "▁") for letter in "bcehijklmnop"]  # besides d and f
    assert found(made("gemma", *twelve)) is None
    assert found(made("gemma", *twelve[:-1])) is not None


def test_whether_only_ascii_keeps_its_bytes_is_told(made: Callable[..., Path]) -> None:
    assert not cuts(made("gemma")).ascii
    assert not cuts(made("llama")).ascii
    for step in (normalizers.NFC(), normalizers.NFD()):
        assert cuts(made("byte_level", change=spoilt_normalizer(step))).ascii


def length(folder: Path, token: str) -> int:
    token_id = read(folder).token_to_id(token)
    assert token_id is not None, token
    return cuts(folder).lengths[token_id]


def test_lengths_are_of_the_text_that_a_token_stands_for(made: Callable[..., Path]) -> None:
    folder = made("gemma", ("▁", "é"), ("x" * 100, "x" * 155), ("<0x", "41"))
    expected = {
        "▁": 1, "▁the": 4, "the": 3, "é": 2, "▁é": 3, "<0x0A>": 1, "<0xE4>": 1, "<0x41": 5, "x" * 100: 100, "x" * 255: 255,
        "<s>": 3, "<|end of turn|>": 15, "<unk>": 255,
    }  # fmt: skip
    assert {token: length(folder, token) for token in expected} == expected


def test_in_a_byte_level_vocabulary_each_character_is_a_byte(made: Callable[..., Path]) -> None:
    folder = made("byte_level", ("Ã", "©"), ("Ġ", "Ã"))
    expected = {"Ġ": 1, "Ġthe": 4, "Ã©": 2, "ĠÃ": 2, "<tool call>": 11, "ŉ☃": 5}
    assert {token: length(folder, token) for token in expected} == expected


def test_added_tokens_that_take_what_is_beside_them_have_no_length(made: Callable[..., Path]) -> None:
    def add(tokenizer: tokenizers.Tokenizer) -> None:
        tokenizer.add_tokens([
            AddedToken("<left>", lstrip=True, normalized=False), AddedToken("<right>", rstrip=True, normalized=False),
            AddedToken("<normalized>", normalized=True), AddedToken("<plain>", normalized=False),
            AddedToken("z" * 300, normalized=False),
        ])  # fmt: skip

    folder = made("gemma", change=add)
    assert [length(folder, f"<{name}>") for name in ("left", "right", "normalized", "plain")] == [255, 255, 255, 7]
    assert length(folder, "z" * 300) == 255


def test_a_token_whose_id_is_not_what_the_file_says_has_no_length(model_path: ModelPath) -> None:
    folder = model_path("gemma")
    header = json.loads((folder / "tokenizer.json").read_text())
    spaces, beyond = read(folder).token_to_id("▁the"), read(folder).get_vocab_size() + 10
    header["added_tokens"][1]["id"] = spaces
    header["added_tokens"][2]["id"] = beyond
    result = found(folder, msgspec.convert(header, TokenizerHeader))
    assert result is not None
    assert len(result.lengths) == beyond + 1
    assert result.lengths[spaces] == result.lengths[beyond] == result.lengths[-2] == 255


def test_an_id_of_two_tokens_has_no_length(made: Callable[..., Path]) -> None:
    folder = made("byte_level")
    content = json.loads((folder / "tokenizer.json").read_text())
    size = len(content["model"]["vocab"])
    content["model"]["vocab"]["Ġanother"] = size + 1  # added tokens get the ids from the number of tokens on
    (folder / "tokenizer.json").write_text(json.dumps(content))
    read(folder).save(str(folder / "tokenizer.json"))
    assert read(folder).token_to_id("Ġanother") == read(folder).token_to_id("<tool call>") == size + 1
    assert length(folder, "Ġanother") == 255
    assert length(folder, "ŉ☃") == 5


def metaspace(tokenizer: tokenizers.Tokenizer) -> None:
    """A space before the text and after added tokens, unless there is one."""
    tokenizer.normalizer = None
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)


def greedy(tokenizer: tokenizers.Tokenizer) -> None:
    tokenizer.add_tokens([
        AddedToken("<mask>", lstrip=True, normalized=False), AddedToken("<right>", rstrip=True, normalized=False),
        AddedToken("word"), AddedToken("▁▁▁▁", normalized=False), AddedToken("two words", normalized=False),
    ])  # fmt: skip


def prefixed(tokenizer: tokenizers.Tokenizer) -> None:
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.normalizer = normalizers.NFC()
    greedy(tokenizer)


def unsplit(tokenizer: tokenizers.Tokenizer) -> None:
    """No splitting at all: merges are tried over the whole text."""
    tokenizer.pre_tokenizer = None
    greedy(tokenizer)


VARIANTS: dict[str, tuple[str, Change]] = {
    "gemma as Metaspace": ("gemma", metaspace),
    "gemma with greedy tokens": ("gemma", greedy),
    "gemma unsplit": ("gemma", unsplit),
    "llama with greedy tokens": ("llama", greedy),
    "byte_level with greedy tokens": ("byte_level", greedy),
    "byte_level with prefix": ("byte_level", prefixed),
}
KINDS = [
    "byte_level", "byte_level_split", "llama", "gemma", "metaspace_bytes", "bytes_unfused", "unigram", "word_piece", "words",
    "word_ends",
]  # fmt: skip
ATOMS = (
    " ", "  ", "     ", "\n", "\n\n", "\t", "\r\n", "a", "The", "word", "words", "don't", "I'll", "'s", " 'S", ",", ".", "(", ")",
    "...", "--", '"', '" ', ' "', "_", "<", ">", "<|", "|>", "12", "3.14", "1,000", "[x]", "a b", "def f(x):\n    return x",
    "http://x.y/z?q=1", "A" * 40, "xyz" * 9, "é", "naïve", "e\u0301", "\u0301", "中文", "日本", "한국어", "привет", "мир",
    "हिन्दी", "\u0e20", "מ", "ع", "½", "ﬁ", "😀", "👩‍👧", "🇩🇪", "☃", "ŉ☃", "\u00a0", "\u3000", "\u2028", "\u205f", "\u0085",
    "\u200b", "\x00", "\x7f", "\ufffd", "▁", "▁▁", "▁the", "Ġ", "<0x0A>", "<s>", "</s>", "<unk>", "<|end of turn|>",
    "<tool call>", "two words", "<mask>", "<right>", "></s>", "> <s>", "the<s>the",
)  # fmt: skip
PROSE = (
    "the quick brown fox jumps over the lazy dog and then these others there, isn't it? We've 1,234 reasons for naïve Ångström "
    "café 你好世界 Привет мир of course: another two three spaces; the end."
)
WORDS = PROSE.split(" ")


def texts(seed: int, count: int) -> Iterator[str]:
    """Pieces glued together or not, prose, and pieces far enough from each other to be gaps of their own."""
    choose = random.Random(seed)
    for number in range(count):
        spaced = choose.random()
        if number % 3 == 0:
            yield "".join(choose.choice(ATOMS) + " " * (choose.random() < spaced) for _ in range(choose.randrange(1, 60)))
        elif number % 3 == 1:
            words = (choose.choice(WORDS if choose.random() < 0.8 else ATOMS) for _ in range(choose.randrange(1, 120)))
            yield " ".join(words)
        else:
            known = " ".join(choose.choices(WORDS, k=choose.randrange(8, 20)))
            odd = ("".join(choose.choices(ATOMS, k=choose.randrange(1, 4))) for _ in range(choose.randrange(1, 6)))
            yield choose.choice(("", " ", "<s>", "<s> ")) + f" {known} ".join(odd)


def by_words(tokenizer: Tokenizer) -> bool:
    return "_by_words" in tokenizer._one.__qualname__


def load(folder: Path) -> Tokenizer:
    return load_tokenizer(ModelFolder.load(folder))


@pytest.fixture(params=["fastokens", "tokenizers"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "fastokens":
        pytest.importorskip("fastokens")
    else:
        monkeypatch.setattr(module, "_load_fast", lambda path: (None, "it is not installed"))
    return str(request.param)


@pytest.mark.parametrize("kind", [*KINDS, *VARIANTS])
def test_ids_are_those_of_the_whole_the_first_time_and_from_memory(
    model_path: ModelPath, made: Callable[..., Path], backend: str, kind: str
) -> None:
    name, change = VARIANTS.get(kind, (kind, None))
    folder = model_path(name) if change is None else made(name, change=change)
    tokenizer, reference = load(folder), read(folder)
    for text in texts(seed=sum(kind.encode()), count=240):
        expected = reference.encode(text, add_special_tokens=False).ids
        for _ in range(2):
            assert tokenizer.encode(text, add_special_tokens=False) == expected, text
        assert tokenizer.pack_all([text], add_special_tokens=True)[0].tolist() == reference.encode(text).ids, text


@compiled
def test_words_are_remembered_where_that_pays(model_path: ModelPath, backend: str) -> None:
    assert by_words(load(model_path("gemma")))
    assert by_words(load(model_path("llama")))
    assert by_words(load(model_path("byte_level"))) is (backend == "tokenizers")  # the other remembers such words by itself
    assert not by_words(load(model_path("unigram")))
    assert not by_words(load(model_path("word_piece")))


AWKWARD: dict[str, tuple[str, tuple[tuple[str, str], ...], Change | None, dict[str, Any], list[str]]] = {
    "a space that is added after an added token": (
        "gemma", (), metaspace, {}, [" the <s>fox", "<s> the <s>fox", "the <s>fox", "x <s>fox"],
    ),
    "whitespace of several bytes that an added token takes": (
        "byte_level", (), greedy, {},
        ["x\u00a0 x\u00a0 x\u00a0", "the " * 40 + "x\u00a0 x\u00a0 <mask> y", "<right>\u00a0 fox", "<right>\u3000 fox"],
    ),
    "a token that reaches over the cut after the context": (
        "gemma", (("▁", "q"), ("a", "▁q")), unsplit, {}, ["the two " * 20, "the two " * 20 + "the q", "ba q"],
    ),
    "characters that have no token": (
        "llama", (), None, {"unk_token": None, "byte_fallback": False}, ["ab c☃", "ab cÿ", "x cÿ", "xy cÿ", "the ÿ the"],
    ),
    "words that are tokens only when they stand alone": (
        "gemma", (), unsplit, {"ignore_merges": True, "merges": []}, ["the", "the the", "x the", "x the the the"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", AWKWARD)
def test_ids_are_right_where_a_tokenizer_is_awkward_to_cut(made: Callable[..., Path], backend: str, case: str) -> None:
    name, merges, change, model, samples = AWKWARD[case]
    folder = made(name, *merges, change=change, **model)
    tokenizer, reference = load(folder), read(folder)
    for text in (*samples, *samples, *reversed(samples)):
        assert tokenizer.encode(text, add_special_tokens=False) == reference.encode(text, add_special_tokens=False).ids, text


def test_characters_without_a_token_do_not_hide_the_space_before_a_text(tmp_path: Path, backend: str) -> None:
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Replace("▁", " ")
    tokenizer.train_from_iterator(["ab c the fox and so on"], trainers.BpeTrainer(vocab_size=25, show_progress=False))
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    loaded = load(tmp_path)
    for text in ("ab cq", "x cq", "the fox cq", "ab cq"):
        assert loaded.encode(text) == tokenizer.encode(text).ids


@compiled
def test_cuts_that_are_wrong_for_a_tokenizer_are_found_out(
    made: Callable[..., Path], backend: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = made("gemma", ("▁", "q"), ("e", "▁q"), change=unsplit)
    right = cuts(folder)
    assert ord("e") not in right.before
    assert by_words(load(folder))
    monkeypatch.setattr(module, "word_cuts", lambda *_: right._replace(before=bytes(range(0x21, 0x7F))))
    with caplog.at_level(logging.WARNING):
        tokenizer = load(folder)
    assert "words are encoded anew each time: remembered, they give other ids for" in caplog.text
    assert not by_words(tokenizer)
    reference = read(folder)
    for text in texts(seed=1, count=30):
        assert tokenizer.encode(text, add_special_tokens=False) == reference.encode(text, add_special_tokens=False).ids


def test_without_the_compiled_part_ids_are_the_same(model_path: ModelPath, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dynamo_core.serving._word_cache", None)
    for name in ("gemma", "byte_level"):
        tokenizer, reference = load(model_path(name)), read(model_path(name))
        assert not by_words(tokenizer)
        for text in texts(seed=2, count=60):
            assert tokenizer.encode(text, add_special_tokens=False) == reference.encode(text, add_special_tokens=False).ids
