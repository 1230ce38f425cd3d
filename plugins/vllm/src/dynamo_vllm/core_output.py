"""What vLLM's processes print: the last lines are kept for error messages, the important ones passed on."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
from collections import deque
from collections.abc import Iterator
from multiprocessing import resource_tracker

__all__ = ["CoreOutput"]

_LINE = re.compile(r"^\((?P<process>[\w:]+)[^)]*\)\s?(?:(?P<level>[A-Z]+) \d\d-\d\d \d\d:\d\d:\d\d \[[^\]]*\] ?)?")
_ERROR = re.compile(r"^(?:[\w.]+\.)?[A-Z]\w*(?:Error|Exception|Interrupt|Exit): .+")
_USELESS = re.compile(r"Engine core initialization failed|WorkerProc initialization failed|EngineCore failed|WorkerProc failed")
_LOUD = frozenset({"ERROR", "CRITICAL"})
_KEPT = 60


class CoreOutput:
    """Standard output and error of the processes that are started within :meth:`redirected`.

    Read on the event loop. With ``verbose`` everything goes on to our own standard error; otherwise nothing does until
    :meth:`started`, and then vLLM's errors and what is no log line of vLLM's.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, *, verbose: bool) -> None:
        self._loop = loop
        self._verbose = verbose
        self._started = False
        self._read, self._write = os.pipe()
        os.set_blocking(self._read, False)
        self._error = os.dup(2)
        self._lines: deque[str] = deque(maxlen=_KEPT)
        self._rest = b""
        loop.add_reader(self._read, self._readable)

    def started(self) -> None:
        """From here on errors are news: what was said before belongs to the start, which went well."""
        self._readable()
        self._lines.clear()
        self._started = True

    @contextlib.contextmanager
    def redirected(self) -> Iterator[None]:
        """Give the pipe to processes started meanwhile. Our own descriptors 1 and 2 point there, too, for that time."""
        resource_tracker.ensure_running()  # it lives as long as we do and must not hold the pipe
        saved = os.dup(1), os.dup(2)
        try:
            os.dup2(self._write, 1)
            os.dup2(self._write, 2)
            yield
        finally:
            for number, descriptor in enumerate(saved, 1):
                os.dup2(descriptor, number)
                os.close(descriptor)

    def tail(self, count: int) -> list[str]:
        """The last lines, without vLLM's prefixes and, unless that leaves none, without Python's stack frames."""
        self._readable()
        said = [line for line in self._lines if not line.startswith((" ", "Traceback ("))]
        return (said or list(self._lines))[-count:]

    def cause(self) -> str | None:
        """The error that the processes died of, as far as it can be told: the last that is not a mere consequence."""
        self._readable()
        errors = [line for line in self._lines if _ERROR.match(line) and not _USELESS.search(line)]
        return errors[-1].partition(": ")[2] if errors else None

    def close(self) -> None:
        """After the processes have ended. Idempotent."""
        if self._read < 0:
            return
        self._readable()
        self._loop.remove_reader(self._read)
        for descriptor in (self._read, self._write, self._error):
            os.close(descriptor)
        self._read = self._write = self._error = -1

    def _readable(self) -> None:
        while self._read >= 0:
            try:
                data = os.read(self._read, 65536)
            except BlockingIOError:
                return
            *lines, self._rest = (self._rest + data).replace(b"\r", b"\n").split(b"\n")
            for line in lines:
                self._line(line)

    def _line(self, raw: bytes) -> None:
        text = raw.decode(errors="replace").rstrip()
        match = _LINE.match(text)
        plain = text[match.end() :] if match else text
        if plain.strip():
            self._lines.append(plain)
            if self._verbose or (self._started and (match is None or match["level"] in _LOUD)):
                with contextlib.suppress(OSError):
                    os.write(self._error, raw + b"\n")
