"""The type in C by itself, against encoders that record what they are asked.

Longer than others, since every test needs the encoders at its head and no module of tests can import another.
"""

from __future__ import annotations

import gc
import os
import sys
import threading
import time
import tracemalloc
import weakref
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("dynamo_core.serving._word_cache", reason="the package was built without a compiler")

from dynamo_core.serving._word_cache import WordCache

AFTER = bytes([*range(0x21, 0x7F), *range(0x80, 0xC0)])
UNKNOWN = 999
"""An id beyond the table."""
KNOWN = " known" * 30
"""So many ids that gaps on both sides stay apart."""


class Bytes:
    """One id a byte, which is its value; texts are recorded."""

    lengths = b"\x01" * 256

    def __init__(self) -> None:
        self.asked: list[str] = []

    def ids(self, text: str) -> list[int]:
        return list(text.encode())

    def __call__(self, texts: list[str]) -> list[bytes]:
        self.asked += texts
        return [array("I", self.ids(text)).tobytes() for text in texts]


class Tokens(Bytes):
    """Greedily, of the tokens given; what none of them begins is an id of its own, beyond the table."""

    def __init__(self, *tokens: str, lengths: dict[str, int] | None = None) -> None:
        super().__init__()
        self.tokens = sorted(tokens, key=len, reverse=True)
        spelt = {token: len(token.encode()) for token in self.tokens} | (lengths or {})
        self.lengths = bytes(min(spelt[token], 255) for token in self.tokens)

    def ids(self, text: str) -> list[int]:
        found = []
        while text:
            token = next((token for token in self.tokens if text.startswith(token)), None)
            found.append(UNKNOWN if token is None else self.tokens.index(token))
            text = text[len(token or "x") :]
        return found


def cache_of(encoder: Bytes, *, ascii: bool = False, entries: int = 1024, after: bytes = AFTER) -> WordCache:
    return WordCache(encoder, "a", len(encoder.ids("a")), after, encoder.lengths, ascii, entries)


def ids(cache: WordCache, text: str) -> list[int]:
    return array("I", cache.encode(text)).tolist()


def asked_for(encoder: Bytes, cache: WordCache, text: str) -> list[str]:
    """What the encoder is asked for; the ids are those of the whole."""
    encoder.asked.clear()
    assert ids(cache, text) == encoder.ids(text)
    return encoder.asked.copy()


def learns(encoder: Bytes, cache: WordCache, text: str, word: str) -> bool:
    """Whether the word is known once the text was seen."""
    asked_for(encoder, cache, text)
    return not any(word in asked for asked in asked_for(encoder, cache, "x" + word))


@pytest.fixture
def encoder() -> Bytes:
    return Bytes()


@pytest.fixture
def words() -> Tokens:
    """Every word a token, so that there are few ids to a text."""
    return Tokens("a", "x", " known", " one", " two", " three", " new", " newer", ",", " ")


def test_the_ids_of_known_words_are_not_asked_for(encoder: Bytes) -> None:
    cache = cache_of(encoder)
    assert asked_for(encoder, cache, "x one two one") == ["x one two one"]
    assert asked_for(encoder, cache, "y" + " two one" * 5) == ["y"]
    assert (cache.hits, cache.misses) == (10, 4 + 1)


def test_only_so_much_is_asked_for_as_is_allowed(encoder: Bytes) -> None:
    cache = cache_of(encoder)
    asked_for(encoder, cache, "x known")
    text = "y" + KNOWN + " seven" + KNOWN + " nine" * 2
    missing = len("y" + " seven" + " nine" * 2)
    encoder.asked.clear()
    assert [cache.recall(text, most) for most in (0, 1, missing - 1)] == [None] * 3
    assert encoder.asked == []
    found = cache.recall(text, missing)
    assert (found, encoder.asked) == (array("I", encoder.ids(text)).tobytes(), ["y", "a seven", "a nine nine"])
    assert cache.recall(text, 0) == found  # learnt
    assert cache.recall("", 0) == b""


@pytest.mark.parametrize("arguments", [("x",), ("x", "y"), (b"x", 1), (None, 1), ("x", 1, 2)])
def test_wrong_arguments_of_recall_are_errors(encoder: Bytes, arguments: tuple[Any, ...]) -> None:
    with pytest.raises(TypeError):
        cache_of(encoder).recall(*arguments)


def test_the_beginning_of_a_text_is_kept_apart_from_the_same_word_elsewhere() -> None:
    class Beginning(Bytes):
        def ids(self, text: str) -> list[int]:
            first, *rest = text.encode()
            return [first ^ 0x80, *rest]

    encoder = Beginning()
    cache = cache_of(encoder)
    assert asked_for(encoder, cache, " one two" + KNOWN) == [" one two" + KNOWN]
    assert asked_for(encoder, cache, " one" + KNOWN) == []
    assert asked_for(encoder, cache, f" one{KNOWN} one") == ["a one"]
    assert asked_for(encoder, cache, " two one") == [" two"]
    assert asked_for(encoder, cache, " two" + " one two" * 5) == []


def test_later_gaps_are_asked_for_after_the_context_whose_ids_are_left_out(encoder: Bytes) -> None:
    cache = cache_of(encoder)
    asked_for(encoder, cache, "x" + KNOWN)
    assert asked_for(encoder, cache, f"y{KNOWN} new{KNOWN} newer") == ["y", "a new", "a newer"]
    assert asked_for(encoder, cache, f"z{KNOWN} newer{KNOWN} new") == ["z"]
    assert asked_for(encoder, cache, f"z{KNOWN} newer{KNOWN} new") == []


def test_a_context_may_have_several_ids_or_none(encoder: Bytes) -> None:
    for context in ("a", "several", ""):
        cache = WordCache(encoder, context, len(context), AFTER, encoder.lengths, False, 64)
        asked_for(encoder, cache, "x" + KNOWN)
        assert asked_for(encoder, cache, f"x{KNOWN} new") == [f"{context} new"]


def test_gaps_with_few_ids_between_them_are_one(words: Tokens) -> None:
    cache = cache_of(words)
    asked_for(words, cache, "a known")
    few, many = " known" * 24, " known" * 25
    assert asked_for(words, cache, f"x{few} one{many} two{few} three") == [f"x{few} one", f"a two{few} three"]
    assert asked_for(words, cache, f"x{many} three{few} two{few} one{few}") == []


def test_words_of_more_than_31_bytes_are_not_kept() -> None:
    longest, longer = " " + "x" * 30, " " + "x" * 31
    encoder = Tokens("a", "x", " x", longest, longer, " é" + "é" * 14, " é" + "é" * 15)
    cache = cache_of(encoder)
    assert learns(encoder, cache, f"x{longest} x", longest)
    assert learns(encoder, cache, "x é" + "é" * 14, " é" + "é" * 14)
    assert not learns(encoder, cache, f"x{longer} x", longer)
    assert not learns(encoder, cache, "x é" + "é" * 15, " é" + "é" * 15)


@pytest.mark.parametrize("end", ["", " ", " then so many words follow that it is read in parts of sixteen bytes"])
def test_words_of_every_length_are_told_apart(end: str) -> None:
    made = [" " + "abc"[length % 3] * (length - 1) + last for length in range(1, 31) for last in "xyz"]
    encoder = Tokens(*ascii_lowercase, " ", *made)
    cache = cache_of(encoder, entries=1 << 16)
    for _ in range(2):
        for word in made:
            asked_for(encoder, cache, f"a{word}{word}{end}")
    for word in made:
        hits = cache.hits
        assert ids(cache, f"a{word}{end}") == encoder.ids(f"a{word}{end}")
        assert cache.hits > hits


def test_words_of_more_than_7_ids_are_not_kept(encoder: Bytes) -> None:
    cache = cache_of(encoder)
    assert learns(encoder, cache, "x 234567 x", " 234567")
    assert not learns(encoder, cache, "x 2345678 x", " 2345678")


def test_a_word_is_cut_only_after_the_bytes_given(encoder: Bytes) -> None:
    cache = cache_of(encoder, after=AFTER.replace(b"d", b""))
    assert not learns(encoder, cache, "x d one", " one")
    assert learns(encoder, cache, "x d one", " d one")
    assert learns(encoder, cache, "x e one", " one")
    assert not learns(encoder, cache_of(encoder, after=b""), "x one two", " one")


def test_tokens_of_which_none_ends_where_the_word_does_teach_nothing() -> None:
    encoder = Tokens("a", "x", " one two", " one", " two", " three")
    cache = cache_of(encoder)
    assert not learns(encoder, cache, "x one two three", " three")
    assert learns(encoder, cache, "x two three", " three")


@pytest.mark.parametrize("length", [0, 3, 254, 255])
def test_tokens_whose_length_is_another_or_not_known_teach_nothing(length: int) -> None:
    for token in ("x", " mask", "."):
        encoder = Tokens("a", "x", " one", " mask", ".", lengths={token: length})
        cache = cache_of(encoder)
        assert not learns(encoder, cache, "x one mask one. one", " one"), token


def test_tokens_without_a_length_after_the_last_word_teach_nothing() -> None:
    class Ending(Tokens):
        def ids(self, text: str) -> list[int]:
            return [*super().ids(text), len(self.tokens)] if text != "a" else super().ids(text)

    encoder = Ending("a", "x", " one", " two")
    encoder.lengths += b"\x00"
    cache = cache_of(encoder)
    for _ in range(2):
        assert asked_for(encoder, cache, "x one two") == ["x one two"]
    assert cache.hits == 0


def test_ids_beyond_the_table_teach_nothing() -> None:
    encoder = Tokens("a", "x", " one", " two")
    cache = cache_of(encoder)
    assert not learns(encoder, cache, "x one ? one", " one")
    assert learns(encoder, cache, "x one two", " one")


def test_a_mark_that_stands_for_the_space_teaches_nothing_where_it_is_spelt_out() -> None:
    encoder = Tokens("a", "x", " one", "▁", "é", "☃", lengths={"▁": 1})
    cache = cache_of(encoder)
    assert not learns(encoder, cache, "x one ▁ one", " one")
    assert learns(encoder, cache, "x one☃é one", " one☃é")


def test_only_ascii_teaches_where_the_rest_may_be_normalized(encoder: Bytes) -> None:
    for text in ("é one two", "x one é", "x one and twoé", "x one\x80 two two two two"):
        assert not learns(encoder, cache_of(encoder, ascii=True), text, " one"), text
        assert learns(encoder, cache_of(encoder), text.replace("one\x80", "one"), " one"), text
    assert learns(encoder, cache_of(encoder, ascii=True), "x one two\x7f", " one")


class Prefixed(Tokens):
    """Puts a space before every text and after ``<s>``, unless there is one: as Metaspace does."""

    def ids(self, text: str) -> list[int]:
        found: list[int] = []
        for index, part in enumerate(text.split("<s>")):
            found += [self.tokens.index("<s>")] if index else []
            found += super().ids(part if part.startswith(" ") or not part else f" {part}")
        return found


@pytest.fixture
def prefixed() -> Prefixed:
    return Prefixed("<s>", " a", " x", "x", " one", " two", ",", " ")


def test_one_space_more_than_there_is_may_belong_to_a_texts_first_word(prefixed: Prefixed) -> None:
    assert learns(prefixed, cache_of(prefixed), "x one two", " one")
    assert learns(prefixed, cache_of(prefixed), "<s>x one two", " one")
    doubled = Prefixed("<s>", " a", " x", " one", " two", lengths={" x": 3})
    assert not learns(doubled, cache_of(doubled), "x one two", " one")


def test_one_space_more_in_a_later_gap_teaches_nothing(prefixed: Prefixed) -> None:
    cache = cache_of(prefixed)
    asked_for(prefixed, cache, "x two")
    assert asked_for(prefixed, cache, "x" + " two" * 30 + " one <s>x one") == ["a one <s>x one"]
    assert not learns(prefixed, cache, "x", " one")


def test_one_space_more_in_a_later_word_is_not_taken_for_one_of_the_first(prefixed: Prefixed) -> None:
    after = AFTER.replace(b">", b"")
    for text in (" one <s>x", "<s> one <s>x two", " one two, <s>x", "<s> one <s>one <s>two"):
        cache = cache_of(prefixed, after=after)
        for known in (text, " one" + text, " two" * 30 + text):
            asked_for(prefixed, cache, known)
            asked_for(prefixed, cache, known)
        assert not learns(prefixed, cache, text, " <s>x"), text


def test_a_texts_first_word_is_learnt_with_the_space_that_it_has_more(prefixed: Prefixed) -> None:
    for first in ("x", "<s>x", " x"):
        cache = cache_of(prefixed)
        assert asked_for(prefixed, cache, f"{first} one two") == [f"{first} one two"]
        assert asked_for(prefixed, cache, f"{first} two one") == [], first
    cache = cache_of(prefixed)
    for _ in range(3):  # whether the space is the first word's cannot be told
        assert asked_for(prefixed, cache, "one, one") == ["one, one"]


def test_words_are_learnt_from_where_the_space_before_the_text_is_certain(prefixed: Prefixed) -> None:
    text = "one, one two two"  # without it, the first word could end where its comma begins
    assert not learns(prefixed, cache_of(prefixed), "one, one", " one")
    assert learns(prefixed, cache_of(prefixed), text, " two")


def test_memory_is_bounded_by_the_number_of_entries(encoder: Bytes) -> None:
    cache = cache_of(encoder, entries=8)
    text = " ".join(f"w{number}" for number in range(200))
    for _ in range(3):
        asked_for(encoder, cache, text)
    assert sum(learns(encoder, cache, "x", f" w{number}") for number in range(200)) <= 8
    assert sys.getsizeof(cache) < 1024


def test_words_that_come_again_stay(encoder: Bytes) -> None:
    cache = cache_of(encoder, entries=8)
    for number in range(100):
        asked_for(encoder, cache, f"x often w{number}")
        asked_for(encoder, cache, "x often")
    assert asked_for(encoder, cache, "x often often") == []


def test_two_words_that_come_in_turn_both_stay_where_there_is_no_room(encoder: Bytes) -> None:
    cache = cache_of(encoder, entries=8)
    asked_for(encoder, cache, "x" + "".join(f" w{number}" for number in range(20)))
    for _ in range(2):
        for word in (" one", " two"):
            asked_for(encoder, cache, "x" + word)
    assert [asked_for(encoder, cache, "x" + word) for word in (" one", " two") * 2] == [[]] * 4


def test_where_looking_up_does_not_pay_text_is_passed_over(encoder: Bytes) -> None:
    cache = cache_of(encoder)
    new = " ".join(f"w{number:06}" for number in range(5000))
    asked_for(encoder, cache, "x known")
    assert asked_for(encoder, cache, new + KNOWN) == [new + KNOWN]
    assert cache.misses < 2500
    asked_for(encoder, cache, new + KNOWN * 100 + new)
    assert cache.hits > 500


def test_of_long_gaps_one_in_eight_is_learnt_from(encoder: Bytes) -> None:
    cache = cache_of(encoder, entries=1 << 16)
    kept = []
    for text in range(16):
        words = [f" {text:02}{number:04}" for number in range(400)]
        asked_for(encoder, cache, "x" + "".join(words))
        hits = cache.hits
        ids(cache, f"y{text}" + "".join(words[:200]))
        kept.append(cache.hits > hits)
    assert kept == [True, *[False] * 7] * 2


def test_an_empty_text_is_asked_for_as_it_is(encoder: Bytes) -> None:
    cache = cache_of(encoder)
    assert cache.encode("") == b""
    assert encoder.asked == [""]

    class Beginning(Bytes):
        def ids(self, text: str) -> list[int]:
            return [7, *super().ids(text)]

    beginning = Beginning()
    assert ids(cache_of(beginning), "") == [7]
    assert asked_for(beginning, cache_of(beginning), "x one") == ["x one"]


@pytest.mark.parametrize("text", [" ", "   ", "x ", " x", "x  y", "  \n ", "\0", " \0 \0", "☃ ☃", "😀 "])
def test_odd_texts_have_the_encoders_ids(encoder: Bytes, text: str) -> None:
    cache = cache_of(encoder)
    for _ in range(3):
        asked_for(encoder, cache, text)
        asked_for(encoder, cache, f"x{KNOWN}{text}{KNOWN}{text}")


def answering(answer: Callable[[list[str]], Any]) -> WordCache:
    return WordCache(answer, "a", 1, AFTER, Bytes.lengths, False, 64)


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (lambda texts: None, TypeError),
        (lambda texts: 3, TypeError),
        (lambda texts: ["text"], TypeError),
        (lambda texts: [None], TypeError),
        (lambda texts: [array("I", [1])], TypeError),
        (lambda texts: [], ValueError),
        (lambda texts: [b"", b""], ValueError),
        (lambda texts: [b"123"], ValueError),
        (lambda texts: [b"12345"], ValueError),
    ],
)
def test_a_wrong_answer_is_an_error(answer: Callable[[list[str]], Any], error: type[Exception]) -> None:
    cache = answering(answer)
    for text in ("x one", "", "x" * 3000):
        with pytest.raises(error):
            cache.encode(text)


def test_an_answer_without_the_contexts_ids_is_an_error(encoder: Bytes) -> None:
    short = False
    cache = answering(lambda texts: [b"" if short and text.startswith("a") else encoder([text])[0] for text in texts])
    ids(cache, "x known")
    short = True
    with pytest.raises(ValueError, match="context"):
        cache.encode(f"x{KNOWN} new")
    short = False
    assert ids(cache, f"x{KNOWN} new") == encoder.ids(f"x{KNOWN} new")


def test_any_sequence_of_bytes_is_an_answer(encoder: Bytes) -> None:
    for kind in (tuple, iter):
        cache = answering(lambda texts, kind=kind: kind(encoder(texts)))  # type: ignore[misc]
        assert ids(cache, "x one") == encoder.ids("x one")


def test_an_error_of_the_encoder_reaches_the_caller(encoder: Bytes) -> None:
    def fail(texts: list[str]) -> list[bytes]:
        raise LookupError("no ids today")

    with pytest.raises(LookupError, match="no ids today"):
        answering(fail).encode("x one")


@pytest.mark.parametrize("text", ["\ud83d", "x one \udc00 two", "one " * 1000 + "\ud83d"])
def test_half_a_surrogate_pair_is_an_error(encoder: Bytes, text: str) -> None:
    with pytest.raises(UnicodeEncodeError):
        cache_of(encoder).encode(text)


@pytest.mark.parametrize("text", [None, b"bytes", 3, ["x"]])
def test_what_is_no_text_is_an_error(encoder: Bytes, text: Any) -> None:
    with pytest.raises(TypeError):
        cache_of(encoder).encode(text)


RIGHT: dict[str, Any] = {
    "encode": Bytes(), "context": "a", "skipped": 1, "after": AFTER, "lengths": Bytes.lengths, "ascii": False, "entries": 64,
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("context", b"a", TypeError),
        ("context", None, TypeError),
        ("skipped", -1, ValueError),
        ("skipped", 1.0, TypeError),
        ("skipped", 1 << 70, OverflowError),
        ("after", "abc", TypeError),
        ("after", b"abc d", ValueError),
        ("lengths", [1], TypeError),
        ("lengths", bytearray(4), TypeError),
        ("entries", 3, ValueError),
        ("entries", -1, ValueError),
        ("entries", (1 << 28) + 1, ValueError),
        ("more", 1, TypeError),
    ],
)
def test_wrong_arguments_are_errors(name: str, value: Any, error: type[Exception]) -> None:
    assert WordCache(**RIGHT).encode("x") == b"x\0\0\0"
    with pytest.raises(error):
        WordCache(**{**RIGHT, name: value})
    with pytest.raises(TypeError):
        WordCache(**{key: argument for key, argument in RIGHT.items() if key != "lengths"})


def test_words_of_one_byte_cannot_outgrow_what_is_allocated(encoder: Bytes) -> None:
    with pytest.raises(ValueError, match="space"):
        cache_of(encoder, after=b" ")


def allocated() -> int:
    gc.collect()
    count = getattr(sys, "gettotalrefcount", None)
    return count() if count else tracemalloc.get_traced_memory()[0]


def test_nothing_leaks() -> None:
    encoder = Bytes()
    answers: list[Any] = [None, [], ["text"], [b"123"], [b"", b""], LookupError("no ids")]

    def answer(texts: list[str]) -> Any:
        if texts[0] == "wrong":
            chosen = answers[len(texts[-1]) % len(answers)]
            if isinstance(chosen, Exception):
                raise chosen.with_traceback(None)
            return chosen
        return encoder(texts)

    def everything(number: int) -> None:
        context = f"context {number}"
        cache = WordCache(lambda texts: answer(texts), context, len(context), AFTER, b"\x01" * (256 + number), False, 64)
        for text in ("x one two", f"x{KNOWN}", f"x{KNOWN} new{KNOWN} ☃ é{KNOWN}", "", "y" * 5000):
            cache.recall(text, 1)
            cache.encode(text)
        for text in ("wrong" + KNOWN + " " + "y" * (number % 7), "\ud83d", None, 3):
            with suppress(TypeError, ValueError, LookupError):
                cache.encode(text)  # type: ignore[arg-type]
        for changed in ({"entries": 1}, {"after": b" "}, {"lengths": 3}):
            with suppress(TypeError, ValueError):
                WordCache(**{**RIGHT, **changed})
        encoder.asked.clear()

    tracemalloc.start()
    try:
        for number in range(60):
            everything(number)
        before, types = allocated(), sys.getrefcount(WordCache)
        for number in range(300):
            everything(number)
        assert allocated() - before < 300 * 32  # less than the smallest object a round
        assert sys.getrefcount(WordCache) <= types
    finally:
        tracemalloc.stop()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_table_is_given_back(encoder: Bytes) -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    before = resident()
    for _ in range(50):
        asked_for(encoder, cache_of(encoder, entries=1 << 15), "x one two" + KNOWN)
    assert resident() - before < 10 * (2 << 20)


def test_a_cycle_is_collected() -> None:
    class Encoder(Bytes):
        cache: WordCache

    gc.collect()
    encoder = Encoder()
    encoder.cache = cache_of(encoder)
    ids(encoder.cache, "x one")
    gone = weakref.ref(encoder)
    del encoder
    gc.collect()
    assert gone() is None


def test_it_may_be_called_by_its_own_encoder(encoder: Bytes) -> None:
    inner: list[list[int]] = []

    def nested(texts: list[str]) -> Sequence[bytes]:
        if texts != ["inner one"]:
            inner.append(ids(cache, "inner one"))
        answer = encoder(texts)
        texts.clear()
        return answer

    cache = answering(nested)
    assert ids(cache, "x one two") == encoder.ids("x one two")
    assert inner == [encoder.ids("inner one")]


def test_threads_get_their_own_ids() -> None:
    class Yielding(Bytes):
        def __call__(self, texts: list[str]) -> list[bytes]:
            time.sleep(0)  # gives up the interpreter's lock
            return super().__call__(texts)

    encoder = Yielding()
    cache = cache_of(encoder, entries=16)  # words take each other's places all the time
    wrong: list[str] = []
    started = threading.Barrier(4)

    def work(seed: int) -> None:
        started.wait()
        for number in range(300):
            text = f"t{seed}" + "".join(f" w{(number * seed + step * step) % 61}" for step in range(number % 80))
            if ids(cache, text) != encoder.ids(text):
                wrong.append(text)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


PIECES = (
    " ", "  ", "\n", "a", "b", "the", "the the", " the", "x" * 29, "x" * 40, ",", ".", "<s>", "é", "▁", "中文", "😀", "\u00a0",
    "\0", " end ",
)  # fmt: skip


def texts() -> Iterator[st.SearchStrategy[str]]:
    yield st.lists(st.sampled_from(PIECES), max_size=60).map("".join)
    yield st.lists(st.sampled_from(PIECES), max_size=60).map(" ".join)
    yield st.text(max_size=80)


SAFE = AFTER.replace(b">", b"").replace(b"\x81", b"")
VOCABULARY = (*map(chr, range(128)), " the", "the", "  ", " a", "xxxx", "en", "中", "é", "▁", "<s>")
"""Cuts are safe: tokens have spaces at their beginning only."""


@given(
    made=st.lists(st.one_of(*texts()), min_size=1, max_size=8),
    kind=st.sampled_from([Tokens, Prefixed]),
    entries=st.sampled_from([8, 16, 1024]),
    ascii=st.booleans(),
)
def test_ids_are_the_encoders_own_cold_and_warm(made: list[str], kind: type[Tokens], entries: int, ascii: bool) -> None:
    encoder = kind(*VOCABULARY, lengths={"▁": 1})
    cache = cache_of(encoder, entries=entries, ascii=ascii, after=SAFE)
    for text in (*made, *made, KNOWN.join(made), "".join(made), KNOWN.join(reversed(made))):
        assert ids(cache, text) == encoder.ids(text)
