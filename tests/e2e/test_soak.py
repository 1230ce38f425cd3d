"""The short version of `make soak`: memory needs the long one, so only what must hold at once is looked at."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_mixed_load_with_leaving_clients_fails_nothing_and_leaves_nothing_open():
    command = [sys.executable, "-m", "benchmarks.soak", "--minutes", "0.25", "--connections", "16", "--tolerance", "50"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    assert " 0 failed; 0 running" in run.stdout
