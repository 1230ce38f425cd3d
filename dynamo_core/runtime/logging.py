"""Log lines of a process: levels and module filters as ``DYN_LOG`` spells them, readable or as JSON lines."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
import time
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any, NamedTuple, TextIO

import msgspec

from dynamo_core.errors import ConfigError

__all__ = ["REQUEST_ID", "TRACE", "LogSpec", "PlainRecords", "configure_dynamo_logging", "gather_lines", "parse_log_spec"]

REQUEST_ID: ContextVar[str] = ContextVar("dynamo_request_id", default="")
"""The request that the running task or callback works for: set once a request, by the HTTP layer and by the request plane's
server, and put on every line that is logged meanwhile. A context variable can only live in a module."""

TRACE = 5
_OFF = logging.CRITICAL + 10
_LEVELS = {
    "off": _OFF, "critical": logging.CRITICAL, "error": logging.ERROR, "warn": logging.WARNING, "warning": logging.WARNING,
    "info": logging.INFO, "debug": logging.DEBUG, "trace": TRACE,
}  # fmt: skip
_NAMES = {
    logging.CRITICAL: "ERROR",
    logging.ERROR: "ERROR",
    logging.WARNING: "WARN",
    logging.INFO: "INFO",
    logging.DEBUG: "DEBUG",
}
_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName", "color_message"}
"""What every record has; the rest was given as ``extra``."""
_PLAIN = len(logging.makeLogRecord({}).__dict__)


class LogSpec(NamedTuple):
    level: int
    modules: Mapping[str, int]


def parse_log_spec(spec: str) -> LogSpec:
    """``info,dynamo_core.runtime=debug``: the level of all, then those of modules. Raises ConfigError."""
    level, modules = logging.INFO, {}
    for part in filter(None, (part.strip() for part in spec.split(","))):
        module, equals, name = (text.strip() for text in part.rpartition("="))
        if name.lower() not in _LEVELS or (equals and not module):
            raise ConfigError(
                f"{part!r} in the log setting {spec!r} is no level: write error, warn, info, debug, trace or module=level."
            )
        if equals:
            modules[module.replace("::", ".")] = _LEVELS[name.lower()]
        else:
            level = _LEVELS[name.lower()]
    return LogSpec(level, modules)


def configure_dynamo_logging(
    spec: str | None = None,
    *,
    jsonl: bool | None = None,
    process: str = "",
    stream: TextIO | None = None,
    service_name: str | None = None,
) -> None:
    """Send what is logged in this process to ``stream`` (stderr), each line with the name of the process.

    ``None``: ``DYN_LOG`` and ``DYN_LOGGING_JSONL``. Replaces what was configured before. ``service_name`` is Dynamo's spelling
    of ``process``. Raises ConfigError.
    """
    process = process or service_name or ""
    wanted = parse_log_spec(os.environ.get("DYN_LOG", "info") if spec is None else spec)
    if jsonl is None:
        jsonl = os.environ.get("DYN_LOGGING_JSONL", "").lower() in {"1", "true", "yes", "on"}
    handler = _Handler(stream or sys.stderr, tuple(wanted.modules))
    handler.setFormatter(_JsonLines(process) if jsonl else _Readable(process))
    logging.addLevelName(TRACE, "TRACE")
    root = logging.getLogger()
    for earlier in root.handlers:
        if isinstance(earlier, _Handler):
            earlier.flush()
            handler.gatherer = earlier.gatherer
            for module in earlier.modules:
                logging.getLogger(module).setLevel(logging.NOTSET)
    root.handlers[:] = [handler]
    root.setLevel(wanted.level)
    for module, level in wanted.modules.items():
        logging.getLogger(module).setLevel(level)
    logging.captureWarnings(capture=True)


def gather_lines(loop: asyncio.AbstractEventLoop) -> None:
    """From here on, lines of INFO and below that this thread logs are written together, 20 ms after the first of them at the
    latest. A warning, a line of another thread and the end of the process write what is held. Call it in the loop's thread.
    """
    for handler in logging.getLogger().handlers:
        if isinstance(handler, _Handler):
            handler.gatherer = _Gatherer(loop, threading.get_ident(), os.getpid())


class PlainRecords:
    """One logger's lines by a shorter way than its methods: nobody looks for the caller, which is always the same, and no record
    is made where nobody but this module's handler would see it."""

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        self._root = logging.getLogger()
        self._same = {level: logging.LogRecord(logger.name, level, "", 0, "", None, None).__dict__ for level in _NAMES}

    def log(self, level: int, message: str) -> None:
        """Ask first whether the level is enabled."""
        handlers = self._root.handlers
        if (
            len(handlers) == 1
            and isinstance(handler := handlers[0], _Handler)
            and self._nobody_below()
            and handler.plain(level, self._logger.name, message)
        ):
            return
        created = time.time()
        record = logging.LogRecord.__new__(logging.LogRecord)
        record.__dict__ = self._same[level].copy()
        record.__dict__.update(msg=message, created=created, msecs=int(created % 1 * 1000) + 0.0)
        self._logger.handle(record)

    def _nobody_below(self) -> bool:
        """That would see, keep back or change what the root's handler gets. Loggers between may come at any time."""
        logger: logging.Logger | None = self._logger
        if self._logger.filters or self._logger.disabled:
            return False
        while logger is not None and logger is not self._root:
            if logger.handlers or not logger.propagate:
                return False
            logger = logger.parent
        return True


class _Gatherer(NamedTuple):
    loop: asyncio.AbstractEventLoop
    thread: int
    process: int
    """A fork has the thread's number and no such loop."""


class _Handler(logging.StreamHandler[TextIO]):
    _SECONDS = 0.02
    _CHARACTERS = 1 << 16

    def __init__(self, stream: TextIO, modules: tuple[str, ...]) -> None:
        super().__init__(stream)
        self.modules = modules
        """Whose levels this configuration has set."""
        self.gatherer: _Gatherer | None = None
        self._held: list[str] = []
        self._held_characters = 0

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record)
        except Exception:  # noqa: BLE001 - as any handler of logging's
            self.handleError(record)
            return
        self._hold(line, record.levelno)

    def plain(self, level: int, name: str, message: str) -> bool:
        """The line of a record that has nothing but this; False where that is not all that there is to do."""
        formatter = self.formatter
        if (
            type(formatter) is not _Readable
            or self.filters
            or level < self.level
            or "\n" in message
            or REQUEST_ID.get() not in message
            or self.lock is None
        ):
            return False
        line = formatter.line(time.time(), level, name, message)
        with self.lock:
            self._hold(line, level)
        return True

    def _hold(self, line: str, level: int) -> None:
        self._held += (line, self.terminator)
        self._held_characters += len(line)
        if self._patient(level) and self._held_characters < self._CHARACTERS:
            if len(self._held) == 2 and self.gatherer is not None:
                self.gatherer.loop.call_later(self._SECONDS, self.flush)
            return
        self.flush()

    def flush(self) -> None:
        self.acquire()
        try:
            held, self._held, self._held_characters = self._held, [], 0
            if held:
                self.stream.write("".join(held))
                self.stream.flush()
        except Exception:  # noqa: BLE001, S110  # a terminal that was closed must not end a server, and there is nobody to tell
            pass
        finally:
            self.release()

    def _patient(self, level: int) -> bool:
        gatherer = self.gatherer
        return (
            gatherer is not None
            and level <= logging.INFO
            and threading.get_ident() == gatherer.thread
            and os.getpid() == gatherer.process
            and not gatherer.loop.is_closed()
        )


def _level_name(level: int) -> str:
    return "TRACE" if level <= TRACE else _NAMES.get(level) or logging.getLevelName(level)


class _Clock:
    """RFC 3339 in UTC with milliseconds. What changes once a second is kept."""

    def __init__(self) -> None:
        self._second, self._text = 0, ""

    def __call__(self, created: float) -> str:
        second = int(created)
        if second != self._second or not self._text:
            self._second, self._text = second, time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        return f"{self._text}.{int((created - second) * 1000):03}Z"


def _extras(record: logging.LogRecord) -> dict[str, Any]:
    extras = {}
    if len(record.__dict__) != _PLAIN:
        extras = {key: value for key, value in record.__dict__.items() if key not in _STANDARD}
    request = REQUEST_ID.get()
    if request:
        extras.setdefault("request", request)
    return extras


class _Readable(logging.Formatter):
    def __init__(self, process: str) -> None:
        super().__init__()
        self._time = _Clock()
        self._process = f"{process} " if process else ""

    def format(self, record: logging.LogRecord) -> str:
        message = record.getMessage()
        line = self.line(record.created, record.levelno, record.name, message)
        for key, value in _extras(record).items():
            if key != "request" or str(value) not in message:  # many messages name their request by themselves
                line += f" {key}={value}"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        if not self._process or "\n" not in line:
            return line
        # Lines of several processes are mixed in one stream: each says whose it is.
        return line.replace("\n", f"\n{self._process}| ")

    def line(self, created: float, level: int, name: str, message: str) -> str:
        return f"{self._time(created)} {_level_name(level):5} {self._process}{name}: {message}"


class _JsonLines(logging.Formatter):
    def __init__(self, process: str) -> None:
        super().__init__()
        self._time = _Clock()
        self._process = process
        self._encode = msgspec.json.Encoder(enc_hook=str).encode

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": self._time(record.created),
            "level": _level_name(record.levelno),
            "process": self._process,
            "target": record.name,
            "message": record.getMessage(),
        }
        line.update({key: value for key, value in _extras(record).items() if key not in line})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        try:
            return self._encode(line).decode()
        except (TypeError, ValueError, RecursionError):  # keys or text that JSON lacks
            return self._encode({key: _plain(value) for key, value in line.items()}).decode()


def _plain(value: Any) -> str:
    return str(value).encode("utf-8", "backslashreplace").decode()
