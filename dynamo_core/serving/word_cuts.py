"""Where a tokenizer lets text be cut so that the ids of its words, joined, are the ids of the whole.

The cut considered is the one between a byte and a space. It is safe

- where no token reaches over it: byte-pair merges make nothing but tokens, so after a byte that stands before a space in none of
  them, no merge crosses the cut
- where what surrounds it does not change how the sides are normalized and split. No rule in use looks farther than its own
  neighbours, so each byte that may stand before the cut is tried, in what ends with it and with what may follow.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable, Iterator
from string import ascii_lowercase
from typing import Any, NamedTuple

import msgspec
import tokenizers

from dynamo_core.serving.model_folder import TokenizerHeader
from dynamo_core.serving.vocabulary import byte_of_character

__all__ = ["CONTEXT", "WordCuts", "word_cuts"]

CONTEXT = "a"
"""What a word is encoded after, so that it is not taken for the beginning of a text. Ends in a letter, as most words do."""

_BEFORE_SPACE = re.compile("(.)(?=[ ▁Ġ])", re.DOTALL)
"""In a token: SentencePiece writes spaces as ▁, byte-level vocabularies as Ġ."""
_BYTE = re.compile("<0x[0-9A-F]{2}>")
_NORMALIZERS = {"NFC", "NFD", "Prepend", "Replace", "Sequence"}
_PRE_TOKENIZERS = {"ByteLevel", "Digits", "Metaspace", "Punctuation", "Sequence", "Split"}
_CONTINUATION = range(0x80, 0xC0)
_IN_UTF_8 = (*range(0xC0), *range(0xC2, 0xF5))
_WIDE_SPACES = "\x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u2028\u2029\u202f\u205f\u3000"
"""All of Unicode's that are not ASCII's."""
_BLOCKS = (
    0x80, 0xA1, 0xC0, 0x300, 0x3A0, 0x400, 0x5D0, 0x640, 0x900, 0xE00, 0x2000, 0x2580, 0x3000, 0x3040, 0x4E00, 0xAC00, 0xFF00,
    0x1F600,
)  # fmt: skip
"""Where 64 characters begin that end, in UTF-8, in each of the continuation bytes."""
_RIGHTS = (
    " a", " The one's 3rd", " 12.5", " (x", " x\n", " ", "  two", " \n\n", " é", " e\u0301", " \u0301", " 中文 字", " 😀", " \t ",
    " 's", " ▁a", " Ġ", " --- ", ' "A', " \u00a0 b",
)  # fmt: skip
_TRIED = 4
"""Of these after each left side, others each time."""
_LETTERS = 13
"""Where text can be cut after fewer of the alphabet's, it is not worth it."""


class WordCuts(NamedTuple):
    before: bytes
    """Those of UTF-8 after which text may be cut."""
    lengths: bytes
    """Of how many bytes of text each token is made, by id; 255 where that is not known."""
    ascii: bool
    """Whether that holds for text in ASCII only."""


def word_cuts(
    reference: tokenizers.Tokenizer, header: TokenizerHeader, encode: Callable[[str, bool], array[int]]
) -> WordCuts | None:
    """For ``encode``, which gives the ids that ``reference`` gives. ``None`` where the tokenizer's kind does not allow it.

    Takes some 0.3 s for 262,144 tokens.
    """
    model = reference.model
    if (
        not isinstance(model, tokenizers.models.BPE)
        or model.dropout
        or model.continuing_subword_prefix
        or model.end_of_word_suffix
        or (model.ignore_merges and not header.byte_level)  # a word would be one token if it stands alone
        or any(token.single_word for token in header.added_tokens)  # some are matched with a space, and see what is before it
        or not _knows(header.normalizer, "normalizers", _NORMALIZERS)
        or not _knows(header.pre_tokenizer, "pretokenizers", _PRE_TOKENIZERS)
        or not _spells_all(model, header.byte_level)
    ):
        return None
    lengths, reached_over = _vocabulary(reference, header, model)
    unsafe = {*reached_over, *_taken(header), *_refuted(lambda text: encode(text, False))}
    before = bytes(byte for byte in (*range(0x21, 0x7F), *_CONTINUATION) if byte not in unsafe)
    if len(set(before) & set(ascii_lowercase.encode())) < _LETTERS or CONTEXT.encode()[-1] in unsafe:
        return None
    return WordCuts(before, lengths, '"NF' in msgspec.json.encode(header.normalizer).decode())


def _vocabulary(reference: tokenizers.Tokenizer, header: TokenizerHeader, model: tokenizers.models.BPE) -> tuple[bytes, set[int]]:
    """The lengths of tokens, and the bytes that stand before a space in one."""
    lengths = bytearray(b"\xff" * (max([reference.get_vocab_size(), *(token.id + 1 for token in header.added_tokens)])))
    unknown = model.unk_token
    lefts: set[str] = set()
    count = 0
    for token_id in range(len(lengths)):
        token = reference.id_to_token(token_id)
        if token is None:
            continue
        count += 1
        lefts.update(_BEFORE_SPACE.findall(token))
        if header.byte_level:
            size = len(token)  # a character for each byte
        elif token.startswith("<0x") and _BYTE.fullmatch(token):
            size = 1
        else:
            size = len(token.replace("▁", " ").encode())
        lengths[token_id] = min(size, 255) if token != unknown else 255
    if count < reference.get_vocab_size():  # there are gaps between ids, so some are larger
        for token in reference.get_vocab():
            lefts.update(_BEFORE_SPACE.findall(token))
    for added in header.added_tokens:
        plain = not (added.lstrip or added.rstrip or added.normalized or added.content == unknown)
        plain = plain and reference.token_to_id(added.content) == added.id
        plain = plain and model.id_to_token(added.id) in (None, added.content)  # where there are gaps, two may have one id
        lengths[added.id] = min(len(added.content.encode()), 255) if plain else 255
    if header.byte_level:
        alphabet = byte_of_character()
        return bytes(lengths), {alphabet.get(left, left.encode()[-1]) for left in lefts}
    return bytes(lengths), {left.encode()[-1] for left in (*lefts, "▁")}  # spelt out in text, it is a space like any other


def _spells_all(model: tokenizers.models.BPE, byte_level: bool) -> bool:
    """Whether there are ids for any text: what no token spells, nor stands for as unknown, is left out without a word."""
    if model.unk_token is not None:
        return True
    if byte_level:
        characters = {byte: character for character, byte in byte_of_character().items()}
        return all(model.token_to_id(characters[byte]) is not None for byte in _IN_UTF_8)
    return model.byte_fallback and all(model.token_to_id(f"<0x{byte:02X}>") is not None for byte in _IN_UTF_8)


def _knows(step: Any, parts: str, known: set[str]) -> bool:
    """Whether a step of the tokenizer, or each that it consists of, is of a known kind, so that bytes stay bytes."""
    if step is None:
        return True
    if step.get("type") not in known or step.get("behavior") == "Removed":
        return False
    if step["type"] == "Replace" and (step["pattern"], step["content"]) != ({"String": " "}, "▁"):
        return False
    return all(_knows(part, parts, known) for part in step.get(parts, ()))


def _taken(header: TokenizerHeader) -> Iterator[int]:
    """Bytes that stand before a space in an added token, or end one: what follows is the beginning of a text to some rules.

    And those that end a space of several bytes, where added tokens take the whitespace beside them.
    """
    if any(token.lstrip or token.rstrip for token in header.added_tokens):
        yield from (space.encode()[-1] for space in _WIDE_SPACES)
    for token in header.added_tokens:
        for left in (*_BEFORE_SPACE.findall(token.content), token.content[-1:]):
            yield from left.encode()[-1:]


def _refuted(encode: Callable[[str], array[int]]) -> Iterator[int]:
    """Bytes that end a text whose ids are others when something follows."""
    skipped = len(encode(CONTEXT))
    rights = [(right, encode(CONTEXT + right)[skipped:]) for right in _RIGHTS]
    for index, left in enumerate(_lefts()):
        ids = encode(left)
        tried = [rights[(index * _TRIED + number) % len(rights)] for number in range(_TRIED)]
        if any(encode(left + right) != ids + after for right, after in tried):
            yield left.encode()[-1]


def _lefts() -> Iterator[str]:
    for code in range(0x21, 0x7F):
        yield from (chr(code), f"A word{chr(code)}", f"\n7 {chr(code)}", f"naïve{chr(code)}{chr(code)}", f" of {chr(code)}")
    for block in _BLOCKS:
        yield from map(chr, range(block, block + 64))
