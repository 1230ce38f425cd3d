"""Server processes: started with their output in a file, ended by id, and what ``/proc`` tells of their trees."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

__all__ = ["ServerProcess", "accepted", "cpu_seconds", "peak_mib", "resident_mib", "settle", "tree"]

_TICKS = os.sysconf("SC_CLK_TCK")
_STOP_SECONDS = 20.0
_LOOK_SECONDS = 1.0


def tree(pid: int) -> list[int]:
    """The process and its descendants that live; empty when it is gone."""
    children: list[int] = []
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            children += map(int, (task / "children").read_text().split())
    except (FileNotFoundError, ProcessLookupError):
        return []
    return [pid, *(below for child in children for below in tree(child))]


def cpu_seconds(roots: Iterable[int]) -> float:
    """User and system time that the trees have spent. The kernel scales it to the scheduler's exact sum; its step is 10 ms."""
    return sum(map(_cpu_seconds, {pid for root in roots for pid in tree(root)}))


def settle(roots: Iterable[int], share: float = 0.1, most: float = 30.0) -> float:
    """Wait until the trees take less than ``share`` of a core: what goes on after the first answer is done (a second tokenizer,
    caches being filled). Returns the seconds that took, at the most ``most``."""
    roots, begun = tuple(roots), time.monotonic()
    spent = cpu_seconds(roots)
    while (waited := time.monotonic() - begun) < most:
        time.sleep(_LOOK_SECONDS)
        before, spent = spent, cpu_seconds(roots)
        if spent - before < share * _LOOK_SECONDS:
            break
    return waited


def resident_mib(roots: Iterable[int]) -> float:
    """VmRSS of the trees: pages that two processes share count twice."""
    return sum(_kib(pid, "VmRSS:") for pid in {pid for root in roots for pid in tree(root)}) / 1024


def peak_mib(roots: Iterable[int]) -> float:
    """The most that each process of the trees ever had resident, added up."""
    return sum(_kib(pid, "VmHWM:") for pid in {pid for root in roots for pid in tree(root)}) / 1024


def _cpu_seconds(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return (int(fields[11]) + int(fields[12])) / _TICKS


def _kib(pid: int, name: str) -> int:
    try:
        _, found, rest = Path(f"/proc/{pid}/status").read_text().partition(name)
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return int(rest.split()[0]) if found else 0


_ESTABLISHED = "01"


def accepted(pid: int, port: int) -> set[int]:
    """The clients' ports of IPv4 connections that the process, not a child of it, has on its own ``port``."""
    by_inode = {}
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, own, other, state, *_, inode = line.split()[:10]
        if state == _ESTABLISHED and int(own.rpartition(":")[2], 16) == port:
            by_inode[f"socket:[{inode}]"] = int(other.rpartition(":")[2], 16)
    found = set()
    for file in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            found.add(by_inode.get(str(file.readlink()), 0))
    return found - {0}


_PR_SET_PDEATHSIG = 1


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


class ServerProcess:
    """A program in a session of its own, so that a terminal's Ctrl-C is ours to pass on; its output goes to ``log``.

    It gets SIGTERM when this process dies, however that comes.
    """

    def __init__(self, command: Sequence[str], log: Path, environment: Mapping[str, str]) -> None:
        self.log = log
        with log.open("wb") as file:
            self._process = subprocess.Popen(
                list(command),
                env={**os.environ, **environment},
                stdout=file,
                stderr=file,
                start_new_session=True,
                preexec_fn=_die_with_parent,  # noqa: PLW1509  # one thread starts servers, and there is no other
            )
        self.pid = self._process.pid

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None

    def why(self) -> str:
        """The last line that it wrote, for an error message."""
        lines = [line.strip() for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        return lines[-1][:300] if lines else "it wrote nothing"

    def stop(self) -> None:
        """SIGTERM; after a while SIGKILL, to whatever of its tree is left."""
        below = tree(self.pid)
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_STOP_SECONDS)
        for pid in below:
            with contextlib.suppress(ProcessLookupError):
                if pid == self.pid or _parent_session(pid) == self.pid:
                    os.kill(pid, signal.SIGKILL)
        self._process.wait()


def _parent_session(pid: int) -> int:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return 0
