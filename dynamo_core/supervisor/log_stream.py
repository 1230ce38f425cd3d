"""One stream for the output of all processes, each line with the name of its process."""

from __future__ import annotations

import queue
import threading
import zlib
from collections.abc import Callable
from datetime import UTC, datetime

import msgspec

__all__ = ["LogStream", "json_line"]

_COLOURS = (36, 33, 35, 32, 34, 96, 93, 95, 92, 94)
_WAITING_CHUNKS = 1024


class LogStream:
    """Lines in whole, never interleaved. Writing happens in a thread of its own, because a terminal or pipe may be stuck.

    With ``jsonl`` every line is a JSON object: processes log such lines by themselves, and whatever else they print becomes one.
    When the reader does not keep up, output is dropped (and counted in a line) rather than a process being blocked by its log.
    """

    def __init__(self, write: Callable[[bytes], None], *, colour: bool = False, jsonl: bool = False) -> None:
        self._write = write
        self._jsonl = jsonl
        self._colour = colour
        self._partial: dict[str, bytes] = {}
        self._dropped = 0
        self._queue: queue.Queue[bytes | None] = queue.Queue(_WAITING_CHUNKS)
        self._thread = threading.Thread(target=self._pump, name="log", daemon=True)
        self._thread.start()

    def feed(self, name: str, data: bytes) -> list[bytes]:
        """Output of the process ``name`` as it was read. Returns the lines that became complete."""
        *lines, rest = (self._partial.pop(name, b"") + data).split(b"\n")
        if rest:
            self._partial[name] = rest
        if lines:
            self._put(name, lines)
        return lines

    def end(self, name: str) -> list[bytes]:
        """The process has ended: its last line may lack a line feed."""
        rest = self._partial.pop(name, b"")
        if rest:
            self._put(name, [rest])
        return [rest] if rest else []

    def close(self) -> None:
        """Write what waits, for at most a second."""
        try:
            self._queue.put(None, timeout=1.0)
        except queue.Full:
            return
        self._thread.join(1.0)

    def _put(self, name: str, lines: list[bytes]) -> None:
        self._queue_up(self._json_lines(name, lines) if self._jsonl else self._named_lines(name, lines))

    def _json_lines(self, name: str, lines: list[bytes]) -> bytes:
        return b"".join((line if line.startswith(b"{") else json_line(name, line)) + b"\n" for line in lines)

    def _named_lines(self, name: str, lines: list[bytes]) -> bytes:
        prefix = f"[{name}] ".encode()
        if self._colour:
            prefix = b"\x1b[%dm%s\x1b[0m" % (_COLOURS[zlib.crc32(name.encode()) % len(_COLOURS)], prefix)
        return b"".join(prefix + line.rstrip(b"\r") + b"\n" for line in lines)

    def _queue_up(self, chunk: bytes) -> None:
        if self._dropped:
            lost = b"%d chunks of output were dropped: nobody read them in time" % self._dropped
            chunk = (json_line("log", lost) if self._jsonl else b"[log] " + lost) + b"\n" + chunk
        try:
            self._queue.put_nowait(chunk)
        except queue.Full:
            self._dropped += 1
        else:
            self._dropped = 0

    def _pump(self) -> None:
        while (chunk := self._queue.get()) is not None:
            try:
                self._write(chunk)
            except (OSError, ValueError):  # the terminal is gone; the processes go on
                continue


def json_line(name: str, line: bytes) -> bytes:
    """What a process printed that is no JSON, as a line of the log without its line feed."""
    time = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    message = line.decode(errors="replace").rstrip("\r")
    return msgspec.json.encode({"time": time, "level": "INFO", "process": name, "target": "output", "message": message})
