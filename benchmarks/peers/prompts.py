"""What is asked: chat completions over English words, seeded, so that every server gets the same requests in the same order."""

from __future__ import annotations

import json
import random
import re
from typing import Any

__all__ = ["MODEL", "Conversations", "FreshPrompts", "RepeatedPrompts"]

MODEL = "bench"
_PARAGRAPH = 50
_HEAD = "POST /v1/chat/completions HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\ncontent-length: "


def _words() -> list[str]:
    """The words of Python's own manual, in its order: some 60,000, of which 3,500 are different."""
    from pydoc_data.topics import topics

    return [word for key in sorted(topics) for word in re.findall(r"[A-Za-z]+", topics[key])]


def _request(messages: list[dict[str, str]], max_tokens: int, *, stream: bool) -> bytes:
    body: dict[str, Any] = {"model": MODEL, "messages": messages, "max_tokens": max_tokens, "stream": stream}
    encoded = json.dumps({**body, "temperature": 0, "ignore_eos": True}).encode()
    return f"{_HEAD}{len(encoded)}\r\n\r\n".encode() + encoded


class _Paragraphs:
    """Text of any length, quick to make: paragraphs drawn from a fixed set."""

    def __init__(self, seed: int) -> None:
        words = _words()
        self._random = random.Random(seed)
        self._set = [" ".join(words[i : i + _PARAGRAPH]) for i in range(0, len(words) - _PARAGRAPH, _PARAGRAPH)]
        self._words = words

    def text(self, words: int) -> str:
        whole, rest = divmod(words, _PARAGRAPH)
        start = self._random.randrange(len(self._words) - _PARAGRAPH)
        return " ".join((*self._words[start : start + rest], *self._random.choices(self._set, k=whole)))


class RepeatedPrompts:
    """64 requests in turn; the first half of the words is common to all."""

    wants_answers = False

    def __init__(self, words: int, max_tokens: tuple[int, int], *, stream: bool, seed: int = 1) -> None:
        self.streams = stream
        lengths = random.Random(seed)
        paragraphs = _Paragraphs(seed)
        common = paragraphs.text(words // 2)
        self._requests = [
            _request(
                [{"role": "user", "content": f"{common} {paragraphs.text(words - words // 2)}"}],
                lengths.randint(*max_tokens),
                stream=stream,
            )
            for _ in range(64)
        ]
        self._turn = -1

    def request(self, connection: int) -> bytes:  # noqa: ARG002  # all connections share the turn
        self._turn += 1
        return self._requests[self._turn % 64]

    def answered(self, connection: int, body: str) -> None: ...


class FreshPrompts:
    """No two requests have a beginning in common beyond the chat template's."""

    wants_answers = False

    def __init__(self, words: int, max_tokens: tuple[int, int], *, stream: bool, seed: int = 1) -> None:
        self.streams = stream
        self._lengths = random.Random(seed)
        self._paragraphs = _Paragraphs(seed)
        self._words = words
        self._max_tokens = max_tokens

    def request(self, connection: int) -> bytes:  # noqa: ARG002
        text = self._paragraphs.text(self._words)
        return _request([{"role": "user", "content": text}], self._lengths.randint(*self._max_tokens), stream=self.streams)

    def answered(self, connection: int, body: str) -> None: ...


class Conversations:
    """A conversation a connection: 200 words of system prompt that all share, then turns of 50 words and the server's answers."""

    wants_answers = True
    streams = True

    def __init__(self, turns: int, max_tokens: int, *, seed: int = 1) -> None:
        self._paragraphs = _Paragraphs(seed)
        self._system = self._paragraphs.text(200)
        self._turns = turns
        self._max_tokens = max_tokens
        self._messages: dict[int, list[dict[str, str]]] = {}

    def request(self, connection: int) -> bytes:
        messages = self._messages.get(connection, [])
        if len(messages) >= 2 * self._turns or not messages:
            messages = [{"role": "system", "content": self._system}]
        self._messages[connection] = messages
        messages.append({"role": "user", "content": self._paragraphs.text(50)})
        return _request(messages, self._max_tokens, stream=True)

    def answered(self, connection: int, body: str) -> None:
        events = (line[6:] for line in body.splitlines() if line.startswith("data: {"))
        deltas = (choice["delta"].get("content") or "" for event in events for choice in json.loads(event)["choices"])
        self._messages[connection].append({"role": "assistant", "content": "".join(deltas)})
