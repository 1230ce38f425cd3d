"""Names of plugins and providers, and the nearest one to a misspelt name."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable

__all__ = ["canonical_name", "is_plugin_name", "nearest_name", "suggestion"]

_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
_MODES = {"kv": "kv-router"}
"""Dynamo's router modes whose names are not those of the plugins, underscores apart."""


def is_plugin_name(name: str) -> bool:
    """Lower case letters, digits and single hyphens."""
    return _NAME.fullmatch(name) is not None


def canonical_name(name: str) -> str:
    """The name that a plugin has for what a user wrote: ``round_robin`` is ``round-robin``, ``kv`` is ``kv-router``."""
    hyphenated = name.strip().replace("_", "-")
    return _MODES.get(hyphenated, hyphenated)


def nearest_name(name: str, known: Iterable[str]) -> str | None:
    """The known name that is most like ``name``; ``None`` if nothing is much like it."""
    matches = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.5)
    return matches[0] if matches else None


def suggestion(name: str, known: Collection[str], *, what: str) -> str:
    """The end of a sentence about an unknown name: the nearest known one, else all of them."""
    near = nearest_name(name, known)
    if near is not None:
        return f"did you mean {near!r}?"
    return f"{what}: {', '.join(sorted(known))}." if known else f"there are no {what}."
