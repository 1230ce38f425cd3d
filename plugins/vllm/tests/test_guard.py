"""Processes of vLLM die with the worker that started them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dynamo_vllm.guard import BACKGROUND, OUTPUT, WORKER_PID, join_worker

CHILD = "import time; from dynamo_vllm.guard import join_worker; join_worker(); print('joined', flush=True); time.sleep(60)"


def test_a_killed_worker_takes_its_processes_along() -> None:
    worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD], env={**os.environ, WORKER_PID: str(worker.pid), OUTPUT: ""}, stdout=subprocess.PIPE
    )
    assert child.stdout is not None
    with child.stdout:
        assert child.stdout.readline() == b"joined\n"
        worker.send_signal(signal.SIGKILL)
        worker.wait(10)
        assert child.wait(10) == -signal.SIGKILL


def test_a_process_whose_worker_is_gone_already_ends_at_once() -> None:
    worker = subprocess.Popen([sys.executable, "-c", ""])
    worker.wait(10)
    child = subprocess.run(
        [sys.executable, "-c", CHILD],
        env={**os.environ, WORKER_PID: str(worker.pid), OUTPUT: ""},
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
    join_worker()


def test_a_child_prints_where_the_worker_listens(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDWR)
    environment = {**os.environ, WORKER_PID: str(os.getpid()), OUTPUT: str(pipe)}
    code = "from dynamo_vllm.guard import join_worker; join_worker(); print('to the worker')"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, timeout=30, check=True)
    assert os.read(reader, 100) == b"to the worker\n"
    assert (done.stdout, done.stderr) == (b"", b"")
    os.close(reader)


def test_a_child_that_nobody_listens_to_keeps_its_output(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    environment = {**os.environ, WORKER_PID: str(os.getpid()), OUTPUT: str(tmp_path / "pipe")}
    code = "from dynamo_vllm.guard import join_worker; join_worker(); print('here')"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, timeout=30, check=True)
    assert done.stdout == b"here\n"


@pytest.mark.parametrize(("asked", "policy"), [("1", os.SCHED_IDLE), ("0", os.sched_getscheduler(0))])
def test_a_child_gives_way_with_all_its_threads_where_it_is_asked_to(asked: str, policy: int) -> None:
    code = """
import os, threading
from dynamo_vllm.guard import join_worker
held = threading.Event()
threading.Thread(target=held.wait).start()
join_worker()
threading.Thread(target=held.wait).start()
print(*(os.sched_getscheduler(int(thread)) for thread in os.listdir("/proc/self/task")), flush=True)
held.set()
"""
    environment = {**os.environ, WORKER_PID: str(os.getpid()), OUTPUT: "", BACKGROUND: asked}
    found = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True, timeout=60)
    assert set(map(int, found.stdout.split())) == {policy}
