"""Who holds a lease, and whether that process still lives."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import msgspec

__all__ = ["Owner"]


class Owner(msgspec.Struct, frozen=True):
    """A process, told apart from a later one with the same pid by its start time."""

    pid: int
    started: int
    """Clock ticks since boot; 0 where the system does not tell."""
    space: str
    """Boot and pid namespace: pids mean the same to all processes of one space. Empty where the system does not tell."""

    @classmethod
    def current(cls) -> Owner:
        pid = os.getpid()
        return cls(pid, _start_time(pid) or 0, _space())

    def alive(self, observer: Owner) -> bool | None:
        """``None``: the observer cannot see, only the heartbeat can tell. Costs one small read of /proc."""
        if not self.space or self.space != observer.space:
            return None
        return _start_time(self.pid) == self.started


def _space() -> str:
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot}:{Path('/proc/self/ns/pid').readlink()}"
    return ""


def _start_time(pid: int) -> int | None:
    """``None`` when the process is gone, or dead and only not yet reaped by its parent."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123  # five times a second for each process: Path costs more than the read
            fields = file.read().rpartition(b")")[2].split()  # the name before it may hold anything
    except OSError:
        return None
    if fields[0] in {b"Z", b"X"}:
        return None
    return int(fields[19])
