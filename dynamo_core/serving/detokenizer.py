"""Text of token ids as they come, equal to what the tokenizer makes of all of them together.

``push`` is called for every generated token. A token that is text on its own, in a stream that waits for nothing, costs one list
lookup. The rest is kept here: open UTF-8 sequences, runs of byte tokens, spaces that only a text's first token loses.

The text of a stream is what decoding prompt and output together adds to the text of the prompt.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from codecs import utf_8_decode
from collections.abc import Sequence

from dynamo_core.serving.vocabulary import Joining, TokenTable

__all__ = ["Detokenizer", "make_detokenizer"]

_UNKNOWN = "\ufffd"
_LONGEST_RUN = 64
"""Byte tokens that are held back. A decoder makes U+FFFD of each byte of a run that holds an error anywhere, so that only the
end of the run tells what its first character is; past this length, complete characters are let go rather than held longer."""
_WINDOW = 8
"""Tokens that are decoded again with each next one when only the decoder itself can tell the text."""


class Detokenizer(ABC):
    """One stream of token ids. Not shared; used from one thread."""

    __slots__ = ("_open", "_table", "_texts")

    def __init__(self, table: TokenTable) -> None:
        self._table = table
        self._texts = table.texts
        self._open = False
        """Whether the next token's text depends on more than the token."""

    def push(self, token_id: int) -> str:
        """The text that is sure after this token; empty while a character is incomplete."""
        if not self._open:
            try:
                text = self._texts[token_id]
            except IndexError:  # above the size of the vocabulary
                return self._advance(token_id)
            if text is not None:
                return text
        return self._advance(token_id)

    def push_many(self, token_ids: Sequence[int]) -> str:
        """As :meth:`push` for each, cheaper."""
        if not self._open:
            texts = self._texts
            try:
                return "".join([texts[token_id] for token_id in token_ids])  # type: ignore[misc] # None is the TypeError below
            except (TypeError, IndexError):
                pass
        push = self.push
        return "".join([push(token_id) for token_id in token_ids])

    @abstractmethod
    def _advance(self, token_id: int) -> str: ...

    @abstractmethod
    def finish(self) -> str:
        """What was held back, U+FFFD for what stayed incomplete. Nothing may be pushed afterwards."""


class _ByteDetokenizer(Detokenizer):
    """Bytes added up and decoded as UTF-8, an error at a time as both Rust and Python do (maximal subparts)."""

    __slots__ = ("_owed", "_rest")

    def __init__(self, table: TokenTable, prompt_ids: Sequence[int]) -> None:
        super().__init__(table)
        tail = b""
        for token_id in reversed(prompt_ids):
            text = table.text(token_id)
            tail = (table.data[token_id] if text is None else text.encode()) + tail
            if len(tail) >= 4:  # no character is longer
                break
        self._rest = tail[utf_8_decode(tail, "replace", False)[1] :]
        self._open = bool(self._rest)
        self._owed = self._rest.decode("utf-8", "replace")
        """What the prompt's text shows for a character that it leaves incomplete."""

    def _advance(self, token_id: int) -> str:
        table = self._table
        data = table.data.get(token_id)
        if data is None:
            text = table.text(token_id)
            if text is None:
                data = table.data[token_id]
            elif self._open:
                data = text.encode()
            else:
                return text
        data = self._rest + data
        text, used = utf_8_decode(data, "replace", False)
        self._rest = data[used:]
        self._open = used < len(data)
        return self._settled(text) if self._owed else text

    def finish(self) -> str:
        text = self._rest.decode("utf-8", "replace")
        self._rest, self._open = b"", False
        return self._settled(text) if self._owed else text

    def _settled(self, text: str) -> str:
        """If a character that the prompt began never completes, its U+FFFD belongs to the prompt's text."""
        if text:
            text = text.removeprefix(self._owed)
            self._owed = ""
        return text


class _PieceDetokenizer(Detokenizer):
    """Pieces of text, with runs of byte tokens between them and a beginning that may be spelt differently."""

    __slots__ = ("_first", "_lead", "_run", "_strip", "_stripped")

    def __init__(self, table: TokenTable, prompt_ids: Sequence[int]) -> None:
        super().__init__(table)
        self._stripped, self._strip = table.vocabulary.strip
        """The character cut from the text's beginning, and how many of them may still be cut."""
        self._first = table.vocabulary.first_differs
        self._run = bytearray()
        self._lead = 0
        """How much of the run belongs to the prompt."""
        self._open = self._first or self._strip > 0
        if prompt_ids:
            self._follow(prompt_ids)

    def _follow(self, prompt_ids: Sequence[int]) -> None:
        """Take the state after the prompt: the beginning is looked at until it has text, then only a run at the end counts."""
        for token_id in prompt_ids:
            if not (self._first or self._strip):
                break
            self.push(token_id)
        else:
            strip = self._strip
            if strip and not self._beginning(self._run_text()):
                self._strip = strip  # the prompt has no text at all, and its run is still to be told
                return
        tail: list[bytes] = []
        for token_id in reversed(prompt_ids):
            if self._table.text(token_id) is None:
                tail.append(self._table.data[token_id])
            elif not self._table.ignores(token_id):
                break
        self._run = bytearray().join(reversed(tail))
        self._lead = len(self._run)
        self._open = bool(self._run) or self._first or self._strip > 0

    def _advance(self, token_id: int) -> str:
        table = self._table
        data = table.data.get(token_id)
        if data is not None:
            return self._take_byte(data)
        text = table.text(token_id)
        if text is None:
            return self._take_byte(table.data[token_id])
        if not self._open or table.ignores(token_id):
            return text
        if self._first:
            self._first = False
            token = table.vocabulary.token(token_id)
            text = table.vocabulary.first_text(token) if token is not None else ""
        if self._run:
            text = self._run_text() + text
            self._run.clear()
            self._lead = 0
        if self._strip:
            text = self._beginning(text)
        self._open = self._strip > 0
        return text

    def finish(self) -> str:
        text = self._run_text()
        self._run.clear()
        return self._beginning(text) if self._strip else text

    def _take_byte(self, data: bytes) -> str:
        self._first = False
        self._open = True
        self._run += data
        if len(self._run) < _LONGEST_RUN:
            return ""
        used = utf_8_decode(self._run, "replace", False)[1]
        rest = self._run[used:]
        del self._run[used:]
        text = self._run_text()
        self._run, self._lead = rest, max(0, self._lead - used)
        if self._strip:
            text = self._beginning(text)
        self._open = bool(rest) or self._strip > 0
        return text

    def _run_text(self) -> str:
        """What the output's part of the run adds to the prompt's part."""
        run, lead = self._run, self._lead
        try:
            text = run.decode()
        except UnicodeDecodeError:
            return _UNKNOWN * (len(run) - lead)
        return text[len(run[:lead].decode("utf-8", "ignore")) :] if lead else text

    def _beginning(self, text: str) -> str:
        """The text without what is cut from its beginning."""
        cut = min(len(text) - len(text.lstrip(self._stripped)), self._strip)
        self._strip = 0 if cut < len(text) else self._strip - cut
        return text[cut:]


class _WholeDetokenizer(Detokenizer):
    """Decodes the last tokens again with each next one. Slower, and right for every decoder that looks a few tokens back."""

    __slots__ = ("_shown", "_tokens")

    def __init__(self, table: TokenTable, prompt_ids: Sequence[int]) -> None:
        super().__init__(table)
        self._open = True
        self._tokens: list[str] = []
        self._shown = ""
        """The text of the tokens as far as it was told."""
        for token_id in reversed(prompt_ids):
            self._keep(token_id)
            if len(self._tokens) == _WINDOW:
                break
        self._tokens.reverse()
        self._shown = self._text()

    def _advance(self, token_id: int) -> str:
        self._keep(token_id)
        text = self._text()
        incomplete = text.endswith(_UNKNOWN) and len(self._tokens) < 4 * _WINDOW
        if incomplete or len(text) <= len(self._shown):
            return ""
        told = text[len(self._shown) :]
        if len(self._tokens) >= 2 * _WINDOW:
            del self._tokens[:-_WINDOW]
            text = self._text()
        self._shown = text
        return told

    def finish(self) -> str:
        return self._text()[len(self._shown) :]

    def _keep(self, token_id: int) -> None:
        table = self._table
        table.text(token_id)
        token = None if table.ignores(token_id) else table.vocabulary.token(token_id)
        if token is not None:
            self._tokens.append(token)

    def _text(self) -> str:
        return self._table.vocabulary.decode_tokens(self._tokens)


def make_detokenizer(table: TokenTable, prompt_ids: Sequence[int] = ()) -> Detokenizer:
    """A detokenizer for what comes after the prompt. Cost does not grow with the prompt."""
    joining = table.vocabulary.joining
    if joining is Joining.BYTES:
        return _ByteDetokenizer(table, prompt_ids)
    if joining is Joining.PIECES:
        return _PieceDetokenizer(table, prompt_ids)
    return _WholeDetokenizer(table, prompt_ids)
