"""Logging of one process: levels with module filters, as text or JSON lines on standard error."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Mapping

import msgspec

from dynamo_core.errors import ConfigError

__all__ = ["LogLevels", "configure_logs", "parse_levels"]

_LEVELS = {
    "off": logging.CRITICAL + 10,
    "error": logging.ERROR,
    "warn": logging.WARNING,
    "warning": logging.WARNING,
    "info": logging.INFO,
    "debug": logging.DEBUG,
    "trace": 5,
}


class LogLevels(msgspec.Struct, frozen=True):
    root: int
    modules: Mapping[str, int]


def parse_levels(text: str) -> LogLevels:
    """``info,dynamo_core.runtime=debug``. Raises :class:`ConfigError`; Rust's ``::`` separates modules as well."""
    root, modules = logging.INFO, {}
    known = ", ".join(_LEVELS)
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        module, equals, level = part.rpartition("=")
        if level.lower() not in _LEVELS:
            raise ConfigError(f"{level!r} in the log setting {text!r} is no level: use {known}, as in info,my.module=debug.")
        if equals:
            modules[module.strip().replace("::", ".")] = _LEVELS[level.lower()]
        else:
            root = _LEVELS[level.lower()]
    return LogLevels(root, modules)


def configure_logs(text: str, *, json_lines: bool, process: str) -> None:
    """Set up the process's logging. Called once, by the process's main module."""
    levels = parse_levels(text)
    logging.addLevelName(5, "TRACE")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonLines(process) if json_lines else _Text("%(asctime)s %(levelname)-7s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(levels.root)
    for module, level in levels.modules.items():
        logging.getLogger(module).setLevel(level)


class _Text(logging.Formatter):
    default_msec_format = "%s.%03d"

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: ARG002, N802 - logging's name
        return f"{time.strftime('%H:%M:%S', time.localtime(record.created))}.{int(record.msecs):03d}"


class _JsonLines(logging.Formatter):
    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname,
            "process": self._process,
            "target": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return msgspec.json.encode(line).decode()
