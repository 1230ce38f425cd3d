"""Processes of vLLM die with the worker that started them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from dynamo_vllm.guard import WORKER_PID, watch_worker

CHILD = "import time; from dynamo_vllm.guard import watch_worker; watch_worker(); print('watching', flush=True); time.sleep(60)"


def test_a_killed_worker_takes_its_processes_along() -> None:
    worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD], env={**os.environ, WORKER_PID: str(worker.pid)}, stdout=subprocess.PIPE
    )
    assert child.stdout is not None
    with child.stdout:
        assert child.stdout.readline() == b"watching\n"
        worker.send_signal(signal.SIGKILL)
        worker.wait(10)
        assert child.wait(10) == -signal.SIGKILL


def test_a_process_whose_worker_is_gone_already_ends_at_once() -> None:
    worker = subprocess.Popen([sys.executable, "-c", ""])
    worker.wait(10)
    child = subprocess.run(
        [sys.executable, "-c", CHILD],
        env={**os.environ, WORKER_PID: str(worker.pid)},
        capture_output=True,
        timeout=30,
        check=False,
    )
    assert child.returncode == -signal.SIGKILL


@pytest.mark.parametrize("pid", [None, os.getpid()])
def test_the_worker_itself_and_other_programs_are_left_alone(pid: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if pid is None:
        monkeypatch.delenv(WORKER_PID, raising=False)
    else:
        monkeypatch.setenv(WORKER_PID, str(pid))
    watch_worker()
