"""Where a prompt may be cut so that its pieces, tokenized each by itself, give the tokens of the whole.

Tokenizers look for added tokens first and tokenize what lies between them apart. So a text may be cut before an added token, as
chat templates put one at every turn, if nothing that is matched can reach across the cut. The piece begins with the token, so
that what follows it is not mistaken for the beginning of a text (SentencePiece spells that differently).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Sequence
from itertools import pairwise

from dynamo_core.serving.model_folder import AddedToken

__all__ = ["cut", "cutting_tokens", "proven"]

_MOST = 16
"""Each may cost a look through every prompt."""
_FEW = 64
"""Occurrences of a character, within a text, up to which each is looked at."""
_SIDES = (
    "", " ", "a", "Hello, world! ", " two  words ", "\n", "\n\n", "\t", "user\n", "1234", "naïve café", "日本語", "😀👩‍👩‍👧‍👦",
    "▁a", "Ġ", "<", ">", "<|", "|>", "</s>", "[", "'s", "é", "e\u0301", "\u200b", "x" * 70, "def f(x):\n    return x\n",
)  # fmt: skip


def cutting_tokens(added_tokens: Collection[AddedToken], texts: Iterable[str]) -> tuple[str, ...]:
    """The added tokens that appear in ``texts`` (what the chat template says) and before which any text may be cut.

    That is: they are matched in the raw text, take nothing of their surroundings, and no other added token can overlap them.
    """
    raw = [token for token in added_tokens if not token.normalized and token.content]
    seen = "\n".join(texts)
    candidates = [token for token in raw if token.content in seen and _takes_nothing(token)]
    contents = [token.content for token in raw]
    return tuple(token.content for token in candidates[: 4 * _MOST] if _stands_alone(token.content, contents))[:_MOST]


def cut(text: str, tokens: Sequence[str]) -> list[str]:
    """``text`` in pieces, cut before each occurrence of ``tokens``. The pieces joined are the text; none is empty."""
    starts = _starts(text, tuple(tokens))
    if starts is not None:
        return [text[start:end] for start, end in pairwise((0, *starts, len(text))) if end > start]
    pieces = [text]
    for token in tokens:
        if token in text:
            pieces = [piece for whole in pieces for piece in _cut_before(whole, token)]
    return pieces


def proven(tokens: Sequence[str], encode: Callable[[str], list[int]]) -> tuple[str, ...]:
    """Those of ``tokens`` for which samples confirm it with the tokenizer itself. Takes some 10 ms: for start-up."""
    before = {side: encode(side) for side in _SIDES}

    def confirmed(token: str) -> bool:
        after = {side: encode(token + side) for side in _SIDES}
        pairs = zip(_SIDES, (*_SIDES[7:], *_SIDES[:7]), strict=True)
        return all(encode(left + token + right) == before[left] + after[right] for left, right in (*pairs, ("", "a"), ("a", "")))

    return tuple(token for token in tokens if confirmed(token))


def _starts(text: str, tokens: tuple[str, ...]) -> list[int] | None:
    """Where tokens begin, in order; ``None`` where their first character is so frequent that it is no help. Looking for one
    character is many times as fast as looking for several."""
    starts: list[int] = []
    for char in {token[0] for token in tokens}:
        at = text.find(char)
        for _ in range(_FEW):
            if at < 0:
                break
            if text.startswith(tokens, at):
                starts.append(at)
            at = text.find(char, at + 1)
        else:
            return None
    starts.sort()
    return starts


def _cut_before(text: str, token: str) -> list[str]:
    first, *rest = text.split(token)
    pieces = [token + part for part in rest]
    return [first, *pieces] if first else pieces


def _takes_nothing(token: AddedToken) -> bool:
    if token.lstrip or token.rstrip or token.single_word:
        return False
    # Its edges are neither whitespace, which a neighbour that strips could take, nor letters, which would make a neighbour that
    # wants to be a word by itself none.
    return re.fullmatch(r"[^\w\s](\S*[^\w\s])?", token.content) is not None


def _stands_alone(content: str, others: Collection[str]) -> bool:
    """No occurrence of another token, or of itself, can share characters with it except by lying within it."""
    for other in others:
        if content in other and other != content:
            return False
        longest = min(len(other), len(content)) - 1
        if any(other.endswith(content[:length]) for length in range(1, longest + 1)):
            return False
    return True
