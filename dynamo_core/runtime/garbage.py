"""The garbage collector of a process that serves."""

from __future__ import annotations

import gc

__all__ = ["spare_the_long_lived"]

_THRESHOLDS = (20_000, 20, 50)
"""Allocations until a collection of the youngest, and how many of those until one of the next generation. Python's own first
number, 700, is reached every few requests; with these, a unary request takes a fifth less time, and a mocker worker with 500
streams does not stand still for 77 ms at a time."""


def spare_the_long_lived() -> None:
    """Look no more at what exists now, and at the rest less often. Called once, when everything is loaded."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_THRESHOLDS)
