"""A child's tie to its supervisor: it and everything it started end when the supervisor does, even by ``kill -9``."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading

__all__ = ["tie"]

_PR_SET_PDEATHSIG = 1


def tie(parent_pid: int, fd: int) -> None:
    """Called first thing in a child. ``fd`` is the read end of a pipe whose write end only the supervisor has.

    The kernel's parent-death signal covers the time before the thread runs; the thread ends the whole process group, so that an
    engine's own subprocesses do not outlive their worker.
    """
    os.set_inheritable(fd, False)
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent_pid:  # died before the line above
        os._exit(1)
    threading.Thread(target=_watch, args=(fd,), name="lifeline", daemon=True).start()


def _watch(fd: int) -> None:
    while os.read(fd, 1):  # nobody writes; an empty read means that the write end is gone
        pass
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)
