"""Counts machine instructions with callgrind: started and stopped from within, so that loading costs nothing."""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import platform
import re
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

__all__ = ["ClientRequests", "NotCounted", "callgrind", "printed"]

# What callgrind.h's macros compile to on x86-64: rax points at six words, the request first; outside valgrind it does nothing.
_CODE = bytes.fromhex("4889f8 31d2 48c1c703 48c1c70d 48c1c73d 48c1c733 4887db 4889d0 c3".replace(" ", ""))
_BASE = (ord("C") << 24) + (ord("T") << 16)
_ZERO, _DUMP_AT, _START, _STOP = _BASE + 1, _BASE + 3, _BASE + 4, _BASE + 5


class NotCounted(Exception):
    """One sentence that says why."""


class ClientRequests:
    """Callgrind's own requests to a program that runs under it."""

    def __init__(self) -> None:
        if platform.machine() != "x86_64":
            raise NotCounted(f"counting machine instructions is for x86-64; this is {platform.machine()}")
        self._memory = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        self._memory.write(_CODE)
        address = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        self._call = ctypes.CFUNCTYPE(ctypes.c_uint64, ctypes.c_void_p)(address)

    def start(self) -> None:
        self._request(_ZERO)
        self._request(_START)

    def stop(self, name: str) -> None:
        text = ctypes.create_string_buffer(name.encode())
        self._request(_DUMP_AT, ctypes.addressof(text))
        self._request(_STOP)

    def _request(self, number: int, argument: int = 0) -> None:
        words = (ctypes.c_uint64 * 6)(number, argument, 0, 0, 0, 0)
        self._call(ctypes.addressof(words))


def callgrind(program: str, command: Sequence[str], environment: Mapping[str, str]) -> dict[str, float]:
    """Run the command, which prints its units, under callgrind. Returns name → instructions a unit. Raises NotCounted."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "callgrind"
        options = ["--tool=callgrind", "--instr-atstart=no", f"--callgrind-out-file={out}", "-q"]
        # An unpacked package looks for its tools where it would have been installed.
        library = Path(program).parents[1] / "libexec" / "valgrind"
        place = {"VALGRIND_LIB": str(library)} if library.is_dir() else {}
        units = json.loads(printed([program, *options, *command], {**environment, **place}))
        totals = dict(filter(None, map(_read, sorted(Path(folder).glob("callgrind*")))))
    return {name: totals[name] / units[name] for name in units}


def printed(command: Sequence[str], environment: Mapping[str, str]) -> str:
    """What the command prints. Raises NotCounted with its last line."""
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NotCounted(f"{' '.join(command[-3:])} failed: {(done.stderr.strip().splitlines() or ['it said nothing'])[-1]}")
    return done.stdout


def _read(path: Path) -> tuple[str, int] | None:
    text = path.read_text()
    name = re.search(r"^desc: Trigger: Client Request: (\w+)", text, re.MULTILINE)
    total = re.search(r"^(?:totals|summary): (\d+)", text, re.MULTILINE)
    return (name[1], int(total[1])) if name and total else None
