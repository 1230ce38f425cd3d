"""The short versions of the failure benchmarks: nothing may fail, every token must be right. Times are for the long ones."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(*arguments: str) -> str:
    command = [sys.executable, "-m", "benchmarks.failure", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "result: the goal is met" in done.stdout
    requests = re.search(r"^(\d+) requests, 0 failed, 0 with other tokens or usage than undisturbed$", done.stdout, re.MULTILINE)
    assert requests is not None, done.stdout
    assert int(requests[1]) >= 60
    return done.stdout


@pytest.mark.slow
def test_workers_killed_under_load_lose_no_request_and_no_token() -> None:
    told = run("kill", "--kills", "3", "--streams", "60", "--tokens", "80", "--pause-ms", "0", "--settle", "2")
    migrated = re.search(r"^3 kills, (\d+) streams migrated", told, re.MULTILINE)
    assert migrated is not None
    assert int(migrated[1]) >= 10


@pytest.mark.slow
def test_what_gets_sigterm_under_load_finishes_what_runs_and_ends_with_0() -> None:
    told = run("drain", "--streams", "30", "--tokens", "40", "--settle", "1")
    assert "exit codes: worker-0 0, frontend-0 0, worker-1 0, frontend-1 0, dynamo serve 0" in told


@pytest.mark.slow
def test_an_outage_of_etcd_under_load_fails_nothing_and_is_told() -> None:
    told = run("etcd-outage", "--seconds", "4", "--wait", "1", "--streams", "30", "--tokens", "40", "--settle", "2", "--wipe")
    assert '"state":"out of reach"' in told
