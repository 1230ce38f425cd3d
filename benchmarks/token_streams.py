"""Many streams at a time whose tokens are compared one by one with those of another run.

The mocker's next token is a hash of all ids before it, so a token that is dropped, repeated or changed alters all that follow.
Streams of even number are completions and are compared by text; those of odd number are chats with log-probabilities, which name
every token, and are compared token by token.
"""

from __future__ import annotations

import asyncio
import json
import random
import statistics
import time
from collections.abc import Iterable
from typing import Any, NamedTuple

__all__ = ["Load", "Outcome", "differing", "replay"]

_WORDS = (
    "the",
    "quick",
    "brown",
    "fox",
    "jumps",
    "over",
    "a",
    "lazy",
    "dog",
    "while",
    "many",
    "animals",
    "watch",
    "the",
    "river",
)


class Outcome(NamedTuple):
    number: int
    asked: int
    """How many tokens."""
    tokens: tuple[Any, ...]
    """Pieces of text, or token and bytes of each."""
    usage: dict[str, Any]
    finish: str | None
    times: tuple[float, ...]
    """When each event with content arrived (monotonic)."""
    failed: str
    """Why it is no whole stream; empty: it is one."""

    @property
    def text(self) -> str:
        return "".join(piece if isinstance(piece, str) else piece[0] for piece in self.tokens)

    def gap_after(self, moment: float) -> float:
        """The longest pause that ended after ``moment``, beyond the stream's usual pause. Seconds."""
        gaps = [(later, later - earlier) for earlier, later in zip(self.times, self.times[1:], strict=False)]
        usual = statistics.median(gap for _, gap in gaps)
        return max((gap for later, gap in gaps if later > moment), default=usual) - usual


class Load:
    """Keeps ``width`` streams running, each of ``tokens`` tokens, until it is stopped; those that run are finished."""

    def __init__(self, port: int, width: int, tokens: int, *, first: int = 0) -> None:
        self.outcomes: list[Outcome] = []
        self._port = port
        self._tokens = tokens
        self._next = first
        self._going = True
        self._tasks = [asyncio.create_task(self._keep(place / width)) for place in range(width)]

    def finish(self) -> None:
        """Begin no more streams."""
        self._going = False

    async def stop(self) -> list[Outcome]:
        self.finish()
        await asyncio.gather(*self._tasks)
        return self.outcomes

    async def _keep(self, share: float) -> None:
        await asyncio.sleep(share * 2)  # not all in one step
        while self._going:
            number, self._next = self._next, self._next + 1
            outcome = await ask(self._port, number, self._tokens)
            self.outcomes.append(outcome)
            if outcome.failed:
                await asyncio.sleep(0.2)  # or a server that is gone is asked a thousand times


async def replay(port: int, outcomes: Iterable[Outcome], width: int = 32) -> dict[int, Outcome]:
    """The same requests, ``width`` at a time."""
    found: dict[int, Outcome] = {}
    left = iter(outcomes)

    async def one_after_the_other() -> None:
        for outcome in left:
            found[outcome.number] = await ask(port, outcome.number, outcome.asked)

    await asyncio.gather(*(one_after_the_other() for _ in range(width)))
    return found


def differing(outcomes: Iterable[Outcome], wanted: dict[int, Outcome]) -> list[str]:
    """A sentence for each whole stream that is not what the other run gave, tokens, finish reason and usage."""
    told = []
    for outcome in outcomes:
        other = wanted[outcome.number]
        if other.failed:
            told.append(f"stream {outcome.number}: the reference failed ({other.failed})")
        elif outcome.failed:
            continue
        elif outcome.text != other.text or (outcome.number % 2 and outcome.tokens != other.tokens):
            told.append(f"stream {outcome.number}: its tokens differ")
        elif (outcome.finish, _counts(outcome)) != (other.finish, _counts(other)):
            told.append(f"stream {outcome.number}: {outcome.usage} {outcome.finish}, not {other.usage} {other.finish}")
    return told


def _counts(outcome: Outcome) -> tuple[Any, ...]:
    """Without what was found in a cache, which is another one."""
    return tuple(outcome.usage.get(key) for key in ("prompt_tokens", "completion_tokens", "total_tokens"))


async def ask(port: int, number: int, tokens: int) -> Outcome:
    pieces: list[tuple[float, bytes]] = []
    try:
        await _exchange(port, number, tokens, pieces)
    except (OSError, asyncio.IncompleteReadError) as error:
        return Outcome(
            number, tokens, (), {}, None, (), f"{type(error).__name__}: {error} after {sum(len(p) for _, p in pieces)} bytes"
        )
    return _read(number, tokens, pieces)


async def _exchange(port: int, number: int, tokens: int, pieces: list[tuple[float, bytes]]) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
    try:
        writer.write(_request(number, tokens))
        while piece := await reader.read(1 << 16):
            pieces.append((time.monotonic(), piece))
    finally:
        writer.close()


def _request(number: int, tokens: int) -> bytes:
    chooser = random.Random(number)
    text = f"{number} " + " ".join(chooser.choices(_WORDS, k=16))
    body: dict[str, Any] = {"model": "bench", "max_tokens": tokens, "temperature": 0, "stream": True, "ignore_eos": True}
    body["stream_options"] = {"include_usage": True}
    if number % 2:
        body |= {"messages": [{"role": "user", "content": text}], "logprobs": True}
    else:
        body["prompt"] = text
    raw = json.dumps(body).encode()
    path = "/v1/chat/completions" if number % 2 else "/v1/completions"
    head = f"POST {path} HTTP/1.1\r\nhost: bench\r\nconnection: close\r\nx-request-id: stream-{number}\r\n"
    return f"{head}content-type: application/json\r\ncontent-length: {len(raw)}\r\n\r\n".encode() + raw


def _read(number: int, tokens: int, pieces: list[tuple[float, bytes]]) -> Outcome:
    """After the stream is over, so that reading costs nobody a pause."""
    events, status, complete = _events(pieces)
    content: list[Any] = []
    times: list[float] = []
    usage: dict[str, Any] = {}
    finish = None
    failed = "" if status == b"200" else f"status {status.decode()}"
    for moment, raw in events:
        event = json.loads(raw)
        if "error" in event:
            failed = failed or f"error event {event['error']}"
        usage = event.get("usage") or usage
        for choice in event.get("choices", ()):
            finish = choice.get("finish_reason") or finish
            entries = (choice.get("logprobs") or {}).get("content") or ()
            said: list[Any] = [(entry["token"], tuple(entry["bytes"] or ())) for entry in entries]
            if not number % 2 and choice.get("text"):
                said = [choice["text"]]
            if said:
                times.append(moment)
                content += said
    if not complete:
        failed = failed or f"the stream broke off after {len(times)} events"
    elif usage.get("completion_tokens") != tokens:
        failed = failed or f"{usage} instead of {tokens} tokens"
    return Outcome(number, tokens, tuple(content), usage, finish, tuple(times), failed)


def _events(pieces: list[tuple[float, bytes]]) -> tuple[list[tuple[float, bytes]], bytes, bool]:
    """When and what each event said, the status, and whether the end came."""
    events: list[tuple[float, bytes]] = []
    rest = b""
    status = b"0"
    complete = False
    for moment, piece in pieces:
        rest += piece
        if status == b"0" and b"\r\n\r\n" in rest:
            head, _, rest = rest.partition(b"\r\n\r\n")
            status = head.split(b" ", 2)[1]
        *lines, rest = rest.split(b"\n\n")
        for line in lines:
            data = line.partition(b"data: ")[2]
            if data == b"[DONE]":
                complete = True
            elif data:
                events.append((moment, data))
    return events, status, complete
