"""Count what a streamed token and a request cost, and compare with the baseline. Exit code 1: something costs too much."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import sys
from collections.abc import Mapping
from pathlib import Path

from benchmarks.instructions.valgrind import NotCounted, callgrind, printed
from dynamo_core.testing.provision import ServerMissing, find_server

BASELINE = Path(__file__).with_name("baseline.json")
TOLERANCE = 1.05
"""Counts of one build differ by 0.5 % between runs, with the addresses that it gets; 10 % more work must not pass."""
SAME_BUILD = 1.08
"""Interpreters whose reference work differs by more were built otherwise (with profile-guided optimization or without)."""
METHODS = ("bytecode", "callgrind")

Counts = Mapping[str, float]


def this_python(method: str) -> str:
    """Counts of different ones cannot be compared, nor those with and without what is compiled of ours."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    found = {name: importlib.util.find_spec(name) for name in ("dynamo_core.kv._block_map", "dynamo_kv_router.router")}
    compiled = [name for name, spec in found.items() if spec is not None and not str(spec.origin).endswith(".py")]
    ours = "".join(f", {name}" for name in compiled)
    return f"{version}{ours}" if method == "bytecode" else f"{version} {platform.machine()}{ours}"


def count(method: str, extra: Mapping[str, float]) -> Counts:
    """Instructions a unit. Raises NotCounted and ServerMissing."""
    command = [sys.executable, "-m", "benchmarks.instructions.paths", method, json.dumps(extra)]
    paths = (str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", ""))
    settled = {"PYTHONHASHSEED": "0", "PYTHONPATH": os.pathsep.join(filter(None, paths)), "DYN_LOG": "info"}
    if method == "callgrind":
        return callgrind(find_server("valgrind"), command, settled)
    counts: Counts = json.loads(printed(command, settled))
    return counts


def extra_work(before: Counts, percent: float) -> dict[str, float]:
    """Pieces of reference work that make a unit of each path dearer by so much."""
    return {name: value * percent / 100 / before["reference"] for name, value in before.items() if name != "reference"}


def compare(method: str, counted: Counts, before: Counts) -> bool:
    """Print the comparison; False: something costs too much."""
    if not 1 / SAME_BUILD < counted["reference"] / before["reference"] < SAME_BUILD:
        raise NotCounted(
            f"this Python was built otherwise than the baseline's: its reference work takes {counted['reference']:.0f}"
        )
    fine = True
    for name, value in counted.items():
        ratio = value / before[name]
        over = name != "reference" and ratio > TOLERANCE
        fine &= not over
        note = f" — more than {TOLERANCE:.2f}: find out why, or run python -m benchmarks.instructions --write" if over else ""
        print(f"{method:10}{name:10}{value:14,.1f} instructions, {ratio:.3f} of the baseline{note}")
    return fine


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.instructions", description=__doc__)
    parser.add_argument("--method", choices=METHODS, action="append", help="only this one")
    parser.add_argument("--write", action="store_true", help="make what is counted the baseline")
    parser.add_argument("--extra", type=float, default=0.0, metavar="PERCENT", help="add work, to see that it is noticed")
    options = parser.parse_args()
    stored: dict[str, dict[str, Counts]] = json.loads(BASELINE.read_text()) if BASELINE.exists() else {}
    fine = True
    for method in options.method or METHODS:
        before = stored.get(method, {}).get(this_python(method))
        try:
            if before is None and not options.write:
                raise NotCounted(f"there is no baseline for Python {this_python(method)}; --write makes one")
            counted = count(method, extra_work(before, options.extra) if before is not None and options.extra else {})
            if options.write:
                stored.setdefault(method, {})[this_python(method)] = {name: round(value, 1) for name, value in counted.items()}
            fine &= before is None or compare(method, counted, before) or options.write
        except (NotCounted, ServerMissing) as error:
            print(f"{method:10}not compared: {error}")
    if options.write:
        BASELINE.write_text(json.dumps(stored, indent=1, sort_keys=True) + "\n")
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
