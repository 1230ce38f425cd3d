"""Token ids of prompts. What was tokenized before is remembered piece by piece: a conversation costs its latest turn only.

Exact: pieces are cut only where the tokens of the whole are those of its pieces (:mod:`dynamo_core.serving.prompt_pieces`).
"""

from __future__ import annotations

import asyncio
import os
import sys
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from dynamo_core.serving.prompt_pieces import cut
from dynamo_core.serving.tokenizer import Tokenizer

__all__ = ["PromptCacheCounters", "PromptEncoder"]

_ENTRY = 250
"""Bytes of an entry besides its text and its ids."""
_LARGEST = 8
"""No entry takes more than this fraction of the memory."""

_THREADS = 4
"""At most; each keeps some MB of what it saw. One encodes millions of tokens a second."""

_RECALLED = 200_000
"""Characters that are looked for among the words seen before without leaving the event loop: 0.5 to 1 ms."""
_UNSEEN = 8192
"""Bytes of those that may be new. They take 0.1 ms, and 1.7 ms where somebody writes words to be slow."""

Key = str | tuple[str]
"""A piece, or in a tuple a whole text with what the tokenizer adds at its ends."""


class PromptCacheCounters:
    """Since the start."""

    __slots__ = ("bytes", "encoded_tokens", "hits", "misses", "reused_tokens")

    def __init__(self) -> None:
        self.hits = 0
        """Prompts of which a part was known."""
        self.misses = 0
        self.reused_tokens = 0
        self.encoded_tokens = 0
        self.bytes = 0
        """Taken at present."""


class PromptEncoder:
    """One per model, for the event loop's thread.

    ``cutting``: tokens before which any text may be cut. ``limit``: bytes of memory for pieces, 0 for none. The least recently
    used go first.
    """

    __slots__ = ("_cutting", "_entries", "_limit", "_threads", "_tokenizer", "counters")

    def __init__(self, tokenizer: Tokenizer, cutting: Sequence[str] = (), limit: int = 16 << 20) -> None:
        self._tokenizer = tokenizer
        self._cutting = tuple(cutting) if limit else ()
        self._limit = limit
        self._entries: OrderedDict[Key, _Entry] = OrderedDict()
        """The least recently used first."""
        self._threads = ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1), thread_name_prefix="tokenizer")
        """Started when they are needed, ended with this object."""
        self.counters = PromptCacheCounters()

    def encode(self, text: str, add_special_tokens: bool = True) -> array[int]:
        """The ids, which are the caller's to change. Raises :class:`~dynamo_core.errors.InvalidRequest`."""
        prompt = self._look_up(text, add_special_tokens)
        self._encode(prompt)
        return prompt.ids()

    async def encode_all(self, texts: Sequence[str], *, add_special_tokens: bool = True) -> tuple[array[int], ...]:
        """As :meth:`encode`; in a thread if what is not known would hold the event loop up for long."""
        prompts = [self._look_up(text, add_special_tokens) for text in texts]
        missing = sum(prompt.missing_length for prompt in prompts)
        if missing <= self._tokenizer.loop_characters:
            for prompt in prompts:
                self._encode(prompt)
        elif missing > _RECALLED or len(prompts) > 1 or not self._recall(prompts[0]):
            pack = self._tokenizer.pack_all
            encoded = await asyncio.get_running_loop().run_in_executor(
                self._threads, lambda: [pack(prompt.missing, prompt.special) for prompt in prompts]
            )
            for prompt, learnt in zip(prompts, encoded, strict=True):
                self._learn(prompt, learnt)
        return tuple(prompt.ids() for prompt in prompts)

    def _look_up(self, text: str, add_special_tokens: bool) -> _Prompt:
        frame = self._tokenizer.frame if add_special_tokens else _NOTHING
        if frame is None:  # what is added depends on the text: nothing but the whole can be remembered
            prompt = _Prompt([self._find((text,))], [text], (), (), True)
        else:
            pieces = cut(text, self._cutting) if self._cutting else [text]
            prompt = _Prompt([self._find(piece) for piece in pieces], pieces, *frame, False)
        if prompt.known:
            self.counters.hits += 1
        else:
            self.counters.misses += 1
        return prompt

    def _find(self, key: Key) -> array[int] | None:
        entry = self._entries.get(key)
        if entry is None:
            return None
        self._entries.move_to_end(entry.key)  # the same object: a long text is not compared again
        self.counters.reused_tokens += len(entry.ids)
        return entry.ids

    def _encode(self, prompt: _Prompt) -> None:
        if prompt.missing:
            self._learn(prompt, [self._tokenizer.pack(piece, prompt.special) for piece in prompt.missing])

    def _recall(self, prompt: _Prompt) -> bool:
        """Encode it if nearly all its words were seen before."""
        if prompt.special:
            return False
        recall, most = self._tokenizer.recall, _UNSEEN // len(prompt.missing)
        learnt: list[array[int]] = []
        for piece in prompt.missing:
            ids = recall(piece, most)
            if ids is None:
                return False
            learnt.append(ids)
        self._learn(prompt, learnt)
        return True

    def _learn(self, prompt: _Prompt, learnt: Iterable[array[int]]) -> None:
        found = prompt.found
        learnt = iter(learnt)
        for index, piece in enumerate(prompt.pieces):
            if found[index] is None:
                found[index] = ids = next(learnt)
                self.counters.encoded_tokens += len(ids)
                self._keep((piece,) if prompt.special else piece, ids)

    def _keep(self, key: Key, ids: array[int]) -> None:
        size = sys.getsizeof(key if isinstance(key, str) else key[0]) + 4 * len(ids) + _ENTRY
        if size * _LARGEST > self._limit:
            return
        counters, entries = self.counters, self._entries
        earlier = entries.pop(key, None)  # two prompts of one request may have had it to learn
        counters.bytes += size - (earlier.size if earlier is not None else 0)
        entries[key] = _Entry(key, ids, size)
        while counters.bytes > self._limit:
            _, oldest = entries.popitem(last=False)
            counters.bytes -= oldest.size


class _Entry(NamedTuple):
    key: Key
    ids: array[int]
    size: int


class _Prompt:
    """One text in pieces, and what is known of them."""

    __slots__ = ("_after", "_before", "found", "missing", "missing_length", "pieces", "special")

    def __init__(
        self, found: list[array[int] | None], pieces: list[str], before: Sequence[int], after: Sequence[int], special: bool
    ) -> None:
        self.found = found
        self.pieces = pieces
        self.special = special
        self._before = before
        self._after = after
        self.missing: list[str] = []
        self.missing_length = 0
        """In characters."""
        if None in found:
            self.missing = [piece for piece, ids in zip(pieces, found, strict=True) if ids is None]
            self.missing_length = sum(map(len, self.missing))

    @property
    def known(self) -> bool:
        """In part at least."""
        return len(self.missing) < len(self.pieces)

    def ids(self) -> array[int]:
        joined = array("I", self._before)
        for ids in self.found:
            assert ids is not None  # noqa: S101 - for the type checker
            joined += ids
        joined.extend(self._after)
        return joined


_NOTHING: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())
