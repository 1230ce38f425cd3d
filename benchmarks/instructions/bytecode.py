"""Counts instructions of the interpreter: the same on every machine for one minor version of Python; C code does not show."""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any

__all__ = ["BytecodeCounter"]


class BytecodeCounter:
    """Of this thread, between ``start`` and ``stop``, in frames that begin or are resumed meanwhile."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self._count = 0
        self._before: Any = None

    def start(self) -> None:
        self._count = 0
        self._before = sys.gettrace()
        sys.settrace(self._trace)

    def stop(self, name: str) -> None:
        sys.settrace(self._before)
        self.counts[name] = self._count

    def _trace(self, frame: FrameType, event: str, _: Any) -> Any:
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        self._count += event == "opcode"
        return self._trace
