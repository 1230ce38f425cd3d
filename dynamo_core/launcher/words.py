"""``in=…`` and ``out=…``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

import msgspec

from dynamo_core.errors import StartupError
from dynamo_core.plugins.names import suggestion
from dynamo_core.runtime import parse_endpoint

__all__ = ["InputKind", "Words", "parse_words"]

InputKind: TypeAlias = Literal["http", "text", "stdin", "batch", "dyn"]

_INPUTS = ("http", "text", "stdin", "batch:FILE", "dyn://NAMESPACE.COMPONENT.ENDPOINT")


class Words(msgspec.Struct, frozen=True, kw_only=True):
    input: InputKind
    target: str = ""
    """Of ``batch:FILE`` the file, of ``dyn://…`` the address."""
    output: str = "auto"
    """The name of an engine, ``dyn`` or ``auto``."""
    model: str | None = None


def parse_words(words: Sequence[str], *, terminal: bool) -> Words:
    """``in=… out=… MODEL`` in any order. Without ``in=``: text on a terminal, else stdin. Raises :class:`StartupError`."""
    given: dict[str, str] = {}
    models: list[str] = []
    for word in words:
        key, equals, value = word.partition("=")
        if equals and key in ("in", "out"):
            if key in given:
                raise StartupError(f"{word} comes after {key}={given[key]}: say {key}= once.")
            given[key] = value
        else:
            models.append(word)
    if len(models) > 1:
        raise StartupError(f"{models[1]!r} comes after the model {models[0]!r}: name one model folder, after in= and out=.")
    kind, target = _input(given.get("in") or ("text" if terminal else "stdin"))
    output = given.get("out") or "auto"
    if kind == "dyn" and output == "dyn":
        raise StartupError("in=dyn://… serves an engine and out=dyn uses what others serve: name an engine with out=ENGINE.")
    return Words(input=kind, target=target, output=output, model=models[0] if models else None)


def _input(text: str) -> tuple[InputKind, str]:
    if text.startswith("dyn://"):
        if parse_endpoint(text)[2] == "metrics":
            raise StartupError(f"in={text} takes the name of the worker's own metrics endpoint: choose another last part.")
        return "dyn", text
    if text.startswith("batch:"):
        if not text.removeprefix("batch:"):
            raise StartupError("in=batch: lacks its file: write in=batch:FILE, a file of JSON lines.")
        return "batch", text.removeprefix("batch:")
    kinds: tuple[InputKind, ...] = ("http", "text", "stdin")
    for kind in kinds:
        if text == kind:
            return kind, ""
    raise StartupError(f"in={text} is no input: {suggestion(text, _INPUTS, what='inputs')}")
