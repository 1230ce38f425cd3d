"""The garbage collector rests while a process that uses etcd forks."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import gc, os, sys
in_child = []
os.register_at_fork(after_in_child=lambda: in_child.append(gc.isenabled()))  # as threading and logging do, long before
from dynamo_etcd import members
if sys.argv[1] == "off":
    gc.disable()
pid = os.fork()
if not pid:
    os._exit(10 * in_child[0] + gc.isenabled())
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), gc.isenabled())
"""


@pytest.mark.parametrize(("collector", "told"), [("on", "1 True"), ("off", "0 False")])
def test_nothing_is_collected_in_a_child_before_it_runs(collector: str, told: str) -> None:
    run = subprocess.run([sys.executable, "-c", PROGRAM, collector], capture_output=True, text=True, check=True, timeout=30)
    assert run.stdout.split() == told.split()
