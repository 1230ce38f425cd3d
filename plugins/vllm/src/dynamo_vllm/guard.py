"""What vLLM's processes do on behalf of the worker: end with it, let it hear what they say, and leave it time on a CPU.

vLLM's engine core does not notice that the process which started it was killed: it would keep the model and the KV cache in
memory for ever. On a CPU its processes spin on ``sched_yield`` while they wait for each other; a frontend on the same cores then
got no time for up to 4 s at once (Linux 6.18, 2 cores, two engines). Of class ``SCHED_IDLE`` they give way as soon as
anything else wants to run, and have all that is left.

vLLM loads :func:`join_worker` in each of its processes, first thing (entry point group
``vllm.general_plugins``).
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import threading
from pathlib import Path

__all__ = ["BACKGROUND", "OUTPUT", "WORKER_PID", "join_worker"]

BACKGROUND = "DYN_VLLM_BACKGROUND"
"""Environment: "1" for processes that are to give way to all others."""

WORKER_PID = "DYN_VLLM_WORKER_PID"
"""Environment: the worker whose children are to end with it. Unset in programs that use vLLM otherwise."""
OUTPUT = "DYN_VLLM_OUTPUT"
"""Environment: the named pipe that takes their standard output and error."""


def join_worker() -> None:
    """Costs one sleeping thread; does nothing outside a worker's children. vLLM calls it more than once."""
    pid = int(os.environ.get(WORKER_PID) or 0)
    if not pid or pid == os.getpid() or any(thread.name == WORKER_PID for thread in threading.enumerate()):
        return
    _print_to(os.environ.get(OUTPUT))
    if os.environ.get(BACKGROUND) == "1":
        _give_way()
    _end_with(pid)


def _print_to(path: str | None) -> None:
    if not path:
        return
    try:
        pipe = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
    except OSError:
        return  # nobody listens: the inherited output will do
    os.set_blocking(pipe, True)
    os.dup2(pipe, 1)
    os.dup2(pipe, 2)
    os.close(pipe)


def _give_way() -> None:
    """Threads to come take it over."""
    if not hasattr(os, "SCHED_IDLE"):
        return
    for thread in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):  # a thread that has ended, or a sandbox: then they compete
            os.sched_setscheduler(int(thread.name), os.SCHED_IDLE, os.sched_param(0))


def _end_with(pid: int) -> None:
    if not hasattr(os, "pidfd_open"):
        return
    try:
        worker = os.pidfd_open(pid)
    except ProcessLookupError:
        os.kill(os.getpid(), signal.SIGKILL)
        return
    except OSError:
        return  # a kernel before 5.3, or a sandbox: then the supervisor's clean-up has to do
    threading.Thread(target=_wait, args=(worker,), name=WORKER_PID, daemon=True).start()


def _wait(worker: int) -> None:
    poll = select.poll()
    poll.register(worker, select.POLLIN)
    poll.poll()
    os.kill(os.getpid(), signal.SIGKILL)
