"""What vLLM's processes print: the last lines are kept for error messages, the important ones passed on."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import threading
from collections import deque
from pathlib import Path

__all__ = ["CoreOutput"]

_LINE = re.compile(r"^\((?P<process>[\w:]+)[^)]*\)\s?(?:(?P<level>[A-Z]+) \d\d-\d\d \d\d:\d\d:\d\d \[[^\]]*\] ?)?")
_ERROR = re.compile(r"^(?:[\w.]+\.)?[A-Z]\w*(?:Error|Exception|Interrupt|Exit): .+")
_USELESS = re.compile(r"Engine core initialization failed|WorkerProc initialization failed|EngineCore failed|WorkerProc failed")
_DEATH = re.compile(r"^Worker proc (?P<name>\S+) died unexpectedly \(exit code: (?:-(?P<signal>\d+)|None)\)")
"""None: its pipe was closed, as its files are first, and vLLM looked before the system had done with it."""
_LOUD = frozenset({"ERROR", "CRITICAL"})
_KEPT = 60
_CLOSE_SECONDS = 2.0
_END = b"\0the end of vLLM's output\0"


class CoreOutput:
    """Standard output and error of vLLM's processes, which open the named pipe ``path`` (:mod:`dynamo_vllm.guard`).

    Read by a thread of its own: were it the event loop, a busy loop could block those who print. With ``verbose`` everything
    goes on to our own standard error; otherwise nothing does until :meth:`started`, and then vLLM's errors and what is no log
    line of vLLM's.
    """

    def __init__(self, path: Path, *, verbose: bool) -> None:
        self.path = path
        self._verbose = verbose
        self._started = False
        os.mkfifo(path, 0o600)
        self._pipe = os.open(path, os.O_RDWR)  # with a writer of our own the pipe never ends
        self._error = os.dup(2)
        self._lock = threading.Lock()
        self._lines: deque[str] = deque(maxlen=_KEPT)
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="output of vLLM", daemon=True)
        self._thread.start()

    def started(self) -> None:
        """From here on errors are news: what was said before belongs to the start, which went well."""
        with self._lock:
            self._lines.clear()
        self._started = True

    def tail(self, count: int) -> list[str]:
        """The last lines, without vLLM's prefixes and, unless that leaves none, without Python's stack frames."""
        lines = self._kept()
        said = [line for line in lines if not line.startswith((" ", "Traceback ("))]
        return (said or lines)[-count:]

    def cause(self) -> str | None:
        """What the processes died of, as far as it can be told: a signal, or the last error that is not a mere consequence."""
        lines = self._kept()
        at, death = next(((i, found) for i, line in enumerate(lines) if (found := _DEATH.match(line))), (len(lines), None))
        errors = [line for line in lines[:at] if _ERROR.match(line) and not _USELESS.search(line)]
        if death is not None and death["signal"] is not None:
            text = _obituary(death["name"], int(death["signal"]))
            return f"{text}, after: {errors[-1]}" if errors else text
        if death is not None and not errors:
            return f"its process {death['name']} has ended, and vLLM did not see how"
        return errors[-1].partition(": ")[2] if errors else None

    def close(self) -> None:
        """Once the processes have ended; blocks until what they said is read. Idempotent."""
        if self._closed:
            return
        self._closed = True
        with contextlib.suppress(OSError):
            os.write(self._pipe, b"\n" + _END + b"\n")
            self.path.unlink()
        self._thread.join(_CLOSE_SECONDS)

    def _kept(self) -> list[str]:
        with self._lock:
            return list(self._lines)

    def _run(self) -> None:
        rest = b""
        try:
            while data := os.read(self._pipe, 65536):
                *lines, rest = (rest + data).replace(b"\r", b"\n").split(b"\n")
                for line in lines:
                    if line == _END:
                        return
                    self._line(line)
        finally:
            os.close(self._pipe)
            os.close(self._error)

    def _line(self, raw: bytes) -> None:
        text = raw.decode(errors="replace").rstrip()
        match = _LINE.match(text)
        plain = text[match.end() :] if match else text
        if not plain.strip():
            return
        with self._lock:
            self._lines.append(plain)
        if self._verbose or (self._started and (match is None or match["level"] in _LOUD)):
            with contextlib.suppress(OSError):
                os.write(self._error, raw + b"\n")


def _obituary(name: str, number: int) -> str:
    try:
        by = signal.Signals(number).name
    except ValueError:
        by = f"signal {number}"
    hint = "; with --engine-arg dtype=float32 vLLM uses instructions that more processors have" if by == "SIGILL" else ""
    return f"its process {name} was ended by {by}{hint}"
