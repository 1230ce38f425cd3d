"""One keep-alive HTTP/1.1 connection of the load: plain sockets, no parsing beyond what tells an answer's end."""

from __future__ import annotations

import socket

__all__ = ["Connection"]

_RECEIVE = 262144
_SEND_BUFFER = 1 << 20
"""A request of any case fits in, so that a server that reads late does not keep the load from the other connections."""
_SECONDS = 30.0
_END = b"\r\n0\r\n\r\n"


class Connection:
    """Attributes speak of the answer to the last request; times are ``perf_counter`` seconds, 0.0 before they happened.

    ``texts`` counts events with text, ``reads`` how often some came. The servers write JSON without spaces; an event that the
    network cuts in two may be missed.
    """

    __slots__ = (
        "_head",
        "_need",
        "_socket",
        "_stream",
        "_tail",
        "answer",
        "asked",
        "fd",
        "first",
        "keep",
        "last",
        "ok",
        "reads",
        "texts",
    )

    _head: bytes
    _need: int
    """Bytes of the body that are to come, once the head is there; -1 before."""
    _stream: bool
    _tail: bytes

    def __init__(self, port: int, *, keep: bool = False) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), _SECONDS)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.setblocking(False)
        self.fd = self._socket.fileno()
        self.keep = keep
        """Keep the body of good answers too; that of bad ones is kept in any case."""
        self.answer: list[bytes] = []
        self._reset(0.0)

    def ask(self, request: bytes, now: float) -> None:
        self._reset(now)
        sent = self._socket.send(request)
        if sent < len(request):
            self._socket.settimeout(_SECONDS)
            self._socket.sendall(request[sent:])
            self._socket.setblocking(False)

    def receive(self) -> bytes | None:
        """None: nothing there. Empty: the server closed the connection."""
        try:
            return self._socket.recv(_RECEIVE)
        except BlockingIOError:
            return None
        except OSError:
            return b""

    def take(self, data: bytes) -> bool:
        """Account for what was received. True: the answer is complete."""
        if self._need < 0:
            data = self._head + data
            end = data.find(b"\r\n\r\n")
            if end < 0:
                self._head = data
                return False
            self._begin(data[:end].lower())
            data = data[end + 4 :]
        if self.keep or not self.ok:
            self.answer.append(data)
        if self._stream:
            news = data.count(b'"content":"') - data.count(b'"content":""')
            if news:
                self.texts += news
                self.reads += 1
            self._tail = data[-7:] if len(data) >= 7 else (self._tail + data)[-7:]
            return self._tail == _END
        self._need -= len(data)
        return self._need <= 0

    def body(self) -> str:
        """What was kept, without the chunks' frames."""
        raw = b"".join(self.answer)
        return (_unchunked(raw) if self._stream else raw).decode(errors="replace")

    def close(self) -> None:
        self._socket.close()

    def _reset(self, now: float) -> None:
        self.asked = now
        self.first = self.last = 0.0
        self.texts = self.reads = 0
        self.ok = False
        self.answer.clear()
        self._head = self._tail = b""
        self._need = -1
        self._stream = False

    def _begin(self, head: bytes) -> None:
        self.ok = b" 200 " in head[:16]
        self._stream = b"transfer-encoding: chunked" in head
        self._need = 0 if self._stream else int(head.split(b"content-length: ")[1].split(b"\r\n")[0])


def _unchunked(raw: bytes) -> bytes:
    parts, at = [], 0
    while (line := raw.find(b"\r\n", at)) > at:
        size = int(raw[at:line].split(b";")[0], 16)
        parts.append(raw[line + 2 : line + 2 + size])
        at = line + 4 + size
    return b"".join(parts)
