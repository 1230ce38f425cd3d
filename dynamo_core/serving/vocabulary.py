"""What each token id adds to a text, read off the tokenizer's own decoder once per id."""

from __future__ import annotations

import enum
import json
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import tokenizers

__all__ = ["Joining", "TokenTable", "Vocabulary"]

_BYTE_TOKEN = re.compile(r"<0x(?:[0-9A-Fa-f]{2}|\+[0-9A-Fa-f])>")
"""What the ByteFallback decoder takes for a byte (its parser of numbers allows the sign)."""


class Joining(enum.Enum):
    """How a decoder makes text of tokens, which decides how much of the past a detokenizer must keep."""

    BYTES = enum.auto()
    """Each token is a string of bytes; the text is their sum, decoded as UTF-8 (byte-level BPE)."""
    PIECES = enum.auto()
    """Each token is a string, spelt differently at most as the first one; runs of byte tokens become characters."""
    WHOLE = enum.auto()
    """Anything else: only the decoder can tell."""


class Vocabulary:
    """Token ids, their strings and the decoder of one tokenizer. Its tables fill as ids are seen: use from one thread."""

    __slots__ = (
        "_bare", "_byte_of", "_byte_tokens", "_prefix", "_replaced", "_tables", "decode_tokens", "first_differs", "joining",
        "size", "special_ids", "strip", "token",
    )  # fmt: skip

    def __init__(
        self,
        token: Callable[[int], str | None],
        size: int,
        special_ids: Collection[int],
        decoder: Mapping[str, Any] | None,
    ) -> None:
        """``decoder`` is ``tokenizer.json``'s; its own code runs here, so that it needs not be written again."""
        self.token = token
        """The string of an id; ``None`` for one that the tokenizer lacks."""
        self.size = size
        self.special_ids = frozenset(special_ids)
        steps = _steps(decoder)
        names = [step["type"] for step in steps]
        self.joining = _joining(steps)
        self.decode_tokens = _decode(decoder)
        """The text of token strings, exactly as the tokenizer itself makes it."""
        self.first_differs = not steps or "Metaspace" in names or "WordPiece" in names
        """Whether the first token of a text is spelt differently."""
        self.strip = (" ", 0)
        """The character that is cut from the beginning of a text, and how often at most."""
        self._bare = self.decode_tokens
        if self.joining is Joining.PIECES and "Fuse" in names and names[-1] == "Strip":
            self.strip = steps[-1]["content"], steps[-1]["start"]
            steps = steps[:-1]
            self._bare = _decode({"type": "Sequence", "decoders": steps})
        self._byte_tokens = "ByteFallback" in names
        self._byte_of = byte_of_character() if self.joining is Joining.BYTES else {}
        self._prefix = len(self._bare(["a"]))
        self._replaced = _replacements(steps)
        """What a decoder does that only replaces strings: half the time of a call of the library."""
        self._tables: dict[bool, TokenTable] = {}

    def table(self, skip_special_tokens: bool) -> TokenTable:
        table = self._tables.get(skip_special_tokens)
        if table is None:
            table = self._tables[skip_special_tokens] = TokenTable(self, skip_special_tokens)
        return table

    def decode(self, token_ids: Iterable[int], skip_special_tokens: bool) -> str:
        skipped = self.special_ids if skip_special_tokens else ()
        tokens = (self.token(token_id) for token_id in token_ids if token_id not in skipped)
        return self.decode_tokens([token for token in tokens if token is not None])

    def first_text(self, token: str) -> str:
        """The text of a token that nothing comes before, not yet stripped."""
        return self._bare([token])

    def later_text(self, token: str) -> str | bytes:
        """What a token adds to the text of those before it; bytes if they are no text on their own."""
        if self.joining is Joining.WHOLE:
            return self.decode_tokens([token])
        if self.joining is Joining.PIECES:
            if self._byte_tokens and _BYTE_TOKEN.fullmatch(token):
                return bytes((int(token[3:5], 16),))
            if self._replaced is not None:
                for pattern, content in self._replaced:
                    token = token.replace(pattern, content)
                return token
            return self._bare(["a", token])[self._prefix :]
        try:
            data = bytes([self._byte_of[character] for character in token])
        except KeyError:  # an added token, which is plain text
            return token
        try:
            return data.decode()
        except UnicodeDecodeError:
            return data


class TokenTable:
    """Text by token id, for one setting of "skip special tokens". Shared by all detokenizers of a tokenizer."""

    __slots__ = ("_ignored", "_skipped", "data", "texts", "vocabulary")

    def __init__(self, vocabulary: Vocabulary, skip_special_tokens: bool) -> None:
        self.vocabulary = vocabulary
        self.texts: list[str | None] = [None] * vocabulary.size
        """``None``: not looked up yet, or no text on its own."""
        self.data: dict[int, bytes] = {}
        """The ids that were looked up and are no text on their own."""
        self._skipped = vocabulary.special_ids if skip_special_tokens else frozenset[int]()
        self._ignored: set[int] = set()

    def text(self, token_id: int) -> str | None:
        """``None`` when the id is no text on its own: its bytes are in ``data``."""
        texts = self.texts
        text = texts[token_id] if token_id < len(texts) else None
        return self._look_up(token_id) if text is None and token_id not in self.data else text

    def ignores(self, token_id: int) -> bool:
        """Whether decoding leaves this id out: skipped or not in the vocabulary. Ask after :meth:`text`."""
        return token_id in self._ignored or token_id >= len(self.texts)

    def _look_up(self, token_id: int) -> str | None:
        token = self.vocabulary.token(token_id)
        missing = token_id + 1 - len(self.texts)
        if missing > 0:
            if token is None:
                return ""
            self.texts.extend([None] * missing)  # ids with gaps between them: the highest is above the count
        if token is None or token_id in self._skipped:
            self._ignored.add(token_id)
            self.texts[token_id] = ""
            return ""
        text = self.vocabulary.later_text(token)
        if isinstance(text, bytes):
            self.data[token_id] = text
            return None
        self.texts[token_id] = text
        return text


def _steps(decoder: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    """The decoder's parts in order, sequences within sequences made flat."""
    if decoder is None:
        return []
    if decoder.get("type") != "Sequence":
        return [decoder]
    return [step for part in decoder["decoders"] for step in _steps(part)]


def _replacements(steps: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]] | None:
    """Pattern and content, where nothing else is done to a token that is neither a byte nor the first."""
    replaces = [step for step in steps if step["type"] == "Replace"]
    others = {step["type"] for step in steps} - {"Replace", "ByteFallback", "Fuse"}
    if not steps or others or not all("String" in step["pattern"] for step in replaces):
        return None
    return [(step["pattern"]["String"], step["content"]) for step in replaces]


def _joining(steps: Sequence[Mapping[str, Any]]) -> Joining:
    names = [step["type"] for step in steps]
    if names == ["ByteLevel"]:
        return Joining.BYTES
    # First what rewrites each token by itself; then bytes to characters; then one text, and at most its beginning cut off.
    rest = names
    while rest and rest[0] in ("Replace", "Strip", "Metaspace", "WordPiece"):
        rest = rest[1:]
    if rest[:1] == ["ByteFallback"]:
        rest = rest[1:]
    if rest[:1] == ["Fuse"]:
        rest = rest[1:]
        if rest == ["Strip"] and steps[-1]["stop"] == 0:
            rest = []
    return Joining.WHOLE if rest else Joining.PIECES


def _decode(decoder: Mapping[str, Any] | None) -> Callable[[list[str]], str]:
    """The library's decoder alone, without a vocabulary."""
    if decoder is None:
        return " ".join
    empty = json.loads(tokenizers.Tokenizer(tokenizers.models.BPE()).to_str())
    made: Any = tokenizers.Tokenizer.from_str(json.dumps({**empty, "decoder": decoder})).decoder
    decode: Callable[[list[str]], str] = made.decode
    return decode


def byte_of_character() -> dict[str, int]:
    """GPT-2's alphabet of 256 printable characters: printable bytes stand for themselves, the others follow from U+0100."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + index): byte for index, byte in enumerate(others)}
