"""The guard on what a streamed token and a request cost: counted in a process of its own, compared with the stored baseline."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dynamo_core.testing.provision import required_server

ROOT = Path(__file__).parents[2]


def counted(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.instructions", *arguments]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=110, check=False)
    assert not run.stderr, run.stderr
    if "not compared: there is no baseline" in run.stdout or "not compared: this Python was built" in run.stdout:
        pytest.skip(run.stdout.strip())
    assert "not compared" not in run.stdout, run.stdout
    return run


def test_a_token_and_a_request_take_no_more_interpreter_instructions_than_the_baseline():
    run = counted("--method", "bytecode")
    assert run.returncode == 0, run.stdout


@pytest.mark.slow
def test_a_token_and_a_request_take_no_more_machine_instructions_than_the_baseline():
    required_server("valgrind")
    run = counted("--method", "callgrind")
    assert run.returncode == 0, run.stdout


def test_ten_percent_more_work_a_token_is_noticed():
    """At five percent over the baseline; an improvement since the baseline was made must not hide the rest."""
    plain = counted("--method", "bytecode")
    slower = counted("--method", "bytecode", "--extra", "10")
    before, after = (
        {line.split()[1]: float(line.split()[4]) for line in run.stdout.splitlines()} for run in (plain, slower)
    )  # fmt: skip
    assert after["stream"] == pytest.approx(before["stream"] + 0.1, abs=0.02)
    assert after["request"] == pytest.approx(before["request"] + 0.1, abs=0.02)
    assert slower.returncode == (1 if max(after.values()) > 1.05 else 0)


def test_the_counted_paths_run_the_same_way_whatever_the_environment():
    first = counted("--method", "bytecode").stdout
    environment = {**os.environ, "SOMETHING": "x" * 5000, "DYN_LOG": "debug"}
    command = [sys.executable, "-m", "benchmarks.instructions", "--method", "bytecode"]
    second = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=110, check=True, env=environment).stdout
    ratios = [[float(line.split()[4]) for line in text.splitlines()] for text in (first, second)]
    assert ratios[0] == pytest.approx(ratios[1], abs=0.01)
