"""A client for completions that all begin together: plain sockets around ``epoll`` in one thread, about 4 µs of CPU a token.

Most of that is the kernel's part of one ``recv`` a token. What it spent is part of every answer, so that nobody need guess
whether the client was what was measured.
"""

from __future__ import annotations

import json
import re
import select
import socket
import time
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

__all__ = ["Answered", "ask_together"]

_COUNT = re.compile(rb'"completion_tokens":\s*(\d+)')
_END = b"\r\n0\r\n\r\n"
_RECEIVE = 262144
_PATIENCE_SECONDS = 300.0


class Answered(NamedTuple):
    """Times in seconds."""

    seconds: float
    """From the first request to the last token."""
    first: list[float]
    """Of each stream, to its first text; empty where that cannot be seen."""
    cpu_seconds: float
    """Of the client."""


class _Stream:
    """One request on a connection of its own, which is there before the clock runs."""

    __slots__ = ("_last", "asked", "first", "request", "socket")

    def __init__(self, port: int, request: bytes) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), 30)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.request = request
        self.asked = 0.0
        self.first = 0.0
        self._last: deque[bytes] = deque(maxlen=8)

    def ask(self) -> None:
        self.asked = time.perf_counter()
        self.socket.sendall(self.request)
        self.socket.setblocking(False)

    def read(self) -> bool:
        """True when the answer is complete, or the server hung up."""
        data = self.socket.recv(_RECEIVE)
        self._last.append(data)
        if not self.first and b'"text"' in data:
            self.first = time.perf_counter()
        if len(data) >= len(_END):
            return data.endswith(_END)
        return not data or b"".join(self._last).endswith(_END)

    def close(self, wanted: int) -> None:
        """Raises :class:`RuntimeError` unless the answer had ``wanted`` tokens."""
        self.socket.close()
        said = b"".join(self._last)
        counts = _COUNT.findall(said)
        if not counts or int(counts[-1]) != wanted:
            raise RuntimeError(f"a stream ended with: {said[-300:]!r}")


def ask_together(port: int, prompts: Sequence[Sequence[int]], tokens: int) -> Answered:
    """Greedy completions of ``tokens`` tokens by the model ``bench``, one connection each."""
    streams = [_Stream(port, _request(prompt, tokens)) for prompt in prompts]
    poller = select.epoll(len(streams))
    waiting = {}
    for stream in streams:
        poller.register(stream.socket, select.EPOLLIN)
        waiting[stream.socket.fileno()] = stream
    cpu, begun = time.process_time(), time.perf_counter()
    for stream in streams:
        stream.ask()
    while waiting:
        ready = poller.poll(_PATIENCE_SECONDS)
        if not ready:
            raise RuntimeError(f"{len(waiting)} streams were silent for {_PATIENCE_SECONDS:.0f} s")
        for fd, _ in ready:
            if waiting[fd].read():
                poller.unregister(fd)
                waiting.pop(fd).close(tokens)
    seconds, spent = time.perf_counter() - begun, time.process_time() - cpu
    poller.close()
    return Answered(seconds, [stream.first - stream.asked for stream in streams if stream.first], spent)


def _request(prompt: Sequence[int], tokens: int) -> bytes:
    body = json.dumps(
        {
            "model": "bench", "prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True, "stream": True,
            "stream_options": {"include_usage": True},
        }
    ).encode()  # fmt: skip
    head = "POST /v1/completions HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\n"
    return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body
