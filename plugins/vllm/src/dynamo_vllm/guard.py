"""Keeps vLLM's processes from outliving the worker.

vLLM's engine core does not notice that the process which started it was killed: it would keep the model and the KV cache in
memory for ever. vLLM loads :func:`watch_worker` in each of its processes (entry point group ``vllm.general_plugins``).
"""

from __future__ import annotations

import os
import select
import signal
import threading

__all__ = ["WORKER_PID", "watch_worker"]

WORKER_PID = "DYN_VLLM_WORKER_PID"
"""Environment: the worker whose children are to die with it. Unset in programs that use vLLM otherwise."""


def watch_worker() -> None:
    """Kill this process as soon as the worker is gone. Costs one sleeping thread; does nothing outside a worker's children."""
    pid = int(os.environ.get(WORKER_PID) or 0)
    if not pid or pid == os.getpid() or not hasattr(os, "pidfd_open"):
        return
    if any(thread.name == WORKER_PID for thread in threading.enumerate()):
        return  # vLLM loads its plugins more than once
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
