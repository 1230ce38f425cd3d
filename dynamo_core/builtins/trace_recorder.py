"""Plugin ``trace-recorder``: writes the traffic of a frontend as a trace for ``dynamo simulate``, without a word of it.

A line a request, in Mooncake's format: when it came (milliseconds since the recording began), how many tokens went in and came
out, and a hash for each block of the prompt. Hashes are salted with a random number that is forgotten when the process ends: they
say which prompts of one recording share a beginning, and nothing else. Lines stand in the order of arrival; a request is written
when it and all before it are over.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections import deque
from collections.abc import Callable
from io import BufferedWriter
from pathlib import Path
from typing import Annotated

import msgspec

from dynamo_core.contracts import PreparedRequest, RequestSummary
from dynamo_core.errors import StartupError
from dynamo_core.hookspecs import hookimpl
from dynamo_core.kv import block_hash, sequence_hashes

__all__ = ["TraceRecorder", "TraceRecorderConfig", "plugin"]

_log = logging.getLogger(__name__)
_MOST_OPEN = 10_000
"""Requests that wait for an earlier one to end; beyond, the earliest is left out."""
_FLUSH_SECS = 1.0


class TraceRecorderConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    file: str = "trace.jsonl"
    """Where to; a number is added when the file exists, as it does for the second of several frontends."""
    block_size: Annotated[int, msgspec.Meta(ge=1)] = 64
    """Tokens a hash: how finely shared prefixes are seen."""


class _Line(msgspec.Struct):
    timestamp: float
    input_length: int
    output_length: int
    hash_ids: list[int]
    block_size: int


class _Entry:
    __slots__ = ("done", "line", "request_id")

    def __init__(self, request_id: str, line: _Line) -> None:
        self.request_id = request_id
        self.line: _Line | None = line
        """``None``: not to be written."""
        self.done = False

    def close(self, output_length: int | None) -> None:
        self.done = True
        if output_length is None:
            self.line = None
        elif self.line is not None:
            self.line.output_length = output_length


class TraceRecorder:
    """Costs about 0.3 µs a block of each prompt, and a few microseconds when a request ends. Called on the event loop."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._file: BufferedWriter | None = None
        self._encode = msgspec.json.Encoder().encode
        self._began = self._flushed = 0.0
        self._salt = ""
        self._block_size = 0
        self._order: deque[_Entry] = deque()
        self._open: dict[str, list[_Entry]] = {}

    @hookimpl
    def dynamo_config(self) -> type[msgspec.Struct]:
        return TraceRecorderConfig

    @hookimpl
    def dynamo_startup(self, process: str, config: TraceRecorderConfig) -> None:
        if process == "frontend":
            self._file = _create(Path(config.file))
            self._began = self._flushed = self._clock()
            self._salt = secrets.token_hex(16)
            self._block_size = config.block_size
            self._order.clear()
            self._open.clear()

    @hookimpl
    def dynamo_prepare(self, request: PreparedRequest) -> None:
        if self._file is None:
            return
        size, tokens = self._block_size, request.token_ids
        salt = f"{self._salt}/{request.model}/{getattr(request.body, 'cache_salt', None) or ''}"
        hashes = sequence_hashes(tokens, size, salt=salt)
        rest = len(tokens) % size
        if rest:
            hashes.append(block_hash((*_halves(hashes[-1] if hashes else 0), *tokens[-rest:]), int(self._salt[:15], 16)))
        # Readers elsewhere take ids for signed numbers.
        line = _Line(round((self._clock() - self._began) * 1000, 1), len(tokens), 0, [name >> 1 for name in hashes], size)
        entry = _Entry(request.id, line)
        self._order.append(entry)
        self._open.setdefault(request.id, []).append(entry)
        if len(self._order) > _MOST_OPEN:
            self._leave_out_the_first()

    @hookimpl
    def dynamo_request_finished(self, summary: RequestSummary) -> None:
        entries = self._open.pop(summary.id, ())
        for entry in entries:  # several prompts of one request have its output together
            entry.close(None if summary.outcome == "rejected" else summary.output_tokens // len(entries))
        self._write()

    @hookimpl
    def dynamo_shutdown(self) -> None:
        if self._file is not None:
            self._write()
            self._file.close()
            self._file = None

    def _write(self) -> None:
        order, file = self._order, self._file
        while order and order[0].done:
            line = order.popleft().line
            if file is not None and line is not None:
                file.write(self._encode(line) + b"\n")
        now = self._clock()
        if file is not None and now - self._flushed >= _FLUSH_SECS:
            self._flushed = now
            file.flush()

    def _leave_out_the_first(self) -> None:
        request_id = self._order[0].request_id
        for entry in self._open.pop(request_id, ()):
            entry.close(None)
        _log.warning("trace-recorder: request %s runs so long that it is left out of the trace", request_id)
        self._write()


def _halves(name: int) -> tuple[int, int]:
    return name & 0xFFFF_FFFF, name >> 32


def _create(path: Path) -> BufferedWriter:
    """Never an existing file: ``trace.jsonl``, else ``trace-2.jsonl`` and so on."""
    number = 1
    while True:
        candidate = path if number == 1 else path.with_name(f"{path.stem}-{number}{path.suffix}")
        try:
            made = candidate.open("xb")
        except FileExistsError:
            number += 1
        except OSError as error:
            raise StartupError(f"[plugins.trace-recorder] file = {str(path)!r} cannot be written: {error.strerror}.") from error
        else:
            _log.info("trace-recorder writes %s", candidate)
            return made


plugin = TraceRecorder()
