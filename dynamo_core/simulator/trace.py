"""Recorded traffic: when requests came, how long they were and which blocks their prompts shared.

The format is Mooncake's: a JSON object a line with ``timestamp`` (milliseconds), ``input_length``, ``output_length`` (tokens) and
``hash_ids``, one a block of the prompt; equal ids are equal blocks behind equal prefixes. Our own recordings have ``block_size``,
too: tokens of a block. Other fields are ignored.
"""

from __future__ import annotations

import random
from array import array
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Annotated

import msgspec

from dynamo_core.errors import StartupError

__all__ = ["Trace", "TraceRequest", "read_trace"]

_WORD = next(code for code in "IL" if array(code).itemsize == 4)
_MOONCAKE_BLOCK = 512
_FIELDS = "timestamp, input_length, output_length and hash_ids"


class _Line(msgspec.Struct):
    timestamp: Annotated[float, msgspec.Meta(ge=0)]
    input_length: Annotated[int, msgspec.Meta(ge=1)]
    output_length: Annotated[int, msgspec.Meta(ge=0)]
    hash_ids: list[int]
    block_size: Annotated[int, msgspec.Meta(ge=1)] | None = None


class TraceRequest(msgspec.Struct, frozen=True):
    at_ms: float
    input_length: int
    output_length: int
    """At least 1: a request that computes a prompt emits a token."""
    blocks: tuple[int, ...]
    """Its hash ids, numbered in the order of their first appearance."""


class Trace(msgspec.Struct, frozen=True):
    requests: tuple[TraceRequest, ...]
    block_size: int
    """Tokens a hash id."""

    def token_ids(self, request: TraceRequest) -> Sequence[int]:
        """The prompt: the number of each block, as often as the block has tokens.

        So prompts are equal as far as their hash ids are, whatever the engine's block size. Four bytes a token, and a few
        microseconds for ten thousand.
        """
        tokens = array(_WORD)
        size = self.block_size
        for block in request.blocks:
            tokens.extend(array(_WORD, (block,)) * size)
        return tokens[: request.input_length]

    def arrivals_ms(self, speedup: float = 1.0, spread_ms: float = 0.0, seed: int = 0) -> list[tuple[float, TraceRequest]]:
        """Who comes when, in order. ``spread_ms``: those of one timestamp are scattered at random over so long after it."""
        if not spread_ms:
            return [(request.at_ms / speedup, request) for request in self.requests]
        lots = random.Random(seed)
        arrivals: list[tuple[float, TraceRequest]] = []
        for at_ms, group in groupby(self.requests, key=lambda request: request.at_ms):
            together = list(group)
            offsets = sorted(lots.random() * spread_ms for _ in together)
            arrivals += [((at_ms + offset) / speedup, request) for offset, request in zip(offsets, together, strict=True)]
        return sorted(arrivals, key=lambda arrival: arrival[0])


def read_trace(path: str, *, block_size: int | None = None, limit: int | None = None) -> Trace:
    """The first ``limit`` requests of the file, or all. ``block_size``: else what the lines say, or 512.

    Raises :class:`~dynamo_core.errors.StartupError` with the line and what is wrong with it.
    """
    decode = msgspec.json.Decoder(_Line).decode
    numbers: dict[int, int] = {}
    requests: list[TraceRequest] = []
    before = 0.0
    size = block_size
    try:
        with Path(path).open("rb") as file:
            for number, text in enumerate(file, 1):
                if limit is not None and len(requests) >= limit:
                    break
                if not text.strip():
                    continue
                where = f"{path}, line {number}"
                try:
                    line = decode(text)
                except (msgspec.DecodeError, UnicodeDecodeError) as error:
                    raise StartupError(_misfit(where, error)) from error
                size = size or line.block_size or _MOONCAKE_BLOCK
                _check(line, where, before, size)
                before = line.timestamp
                blocks = tuple(numbers.setdefault(i, len(numbers)) for i in line.hash_ids[: -(-line.input_length // size)])
                requests.append(TraceRequest(line.timestamp, line.input_length, max(1, line.output_length), blocks))
    except OSError as error:
        raise StartupError(f"The trace {path} cannot be read ({error.strerror}): give the path of a JSONL file.") from error
    if not requests or size is None:
        raise StartupError(f"The trace {path} holds no request: a line is an object with {_FIELDS}.")
    return Trace(tuple(requests), size)


def _misfit(where: str, error: Exception) -> str:
    text = str(error)
    if "missing required field" in text:
        return f"{where}: the field {text.split('`')[1]!r} is missing; a request needs {_FIELDS}."
    what = f"{text[:1].lower()}{text[1:]}".replace(" - at `$.", " in `")
    return f"{where} is not a request ({what}); a line is an object with {_FIELDS}."


def _check(line: _Line, where: str, before: float, block_size: int) -> None:
    if line.timestamp < before:
        raise StartupError(f"{where}: timestamp {line.timestamp:g} comes after {before:g}; sort the trace by timestamp.")
    if line.block_size not in (None, block_size):
        raise StartupError(
            f"{where}: block_size is {line.block_size}, not {block_size} as before; a trace has one block size, "
            f"and --trace-block-size must not say otherwise."
        )
    if len(line.hash_ids) * block_size < line.input_length:
        raise StartupError(
            f"{where}: {len(line.hash_ids)} hash ids of {block_size} tokens do not cover input_length {line.input_length}; "
            f"give the trace's own block size with --trace-block-size."
        )
