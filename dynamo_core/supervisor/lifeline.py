"""A child's tie to its supervisor: it and everything it started end when the supervisor does, even by ``kill -9``."""

from __future__ import annotations

import os
import signal
import threading

__all__ = ["tie"]


def tie(fd: int) -> None:
    """Called first thing in a child. ``fd`` is the read end of a pipe whose write end only the supervisor has.

    A thread waits for the pipe's end and kills the whole process group. The kernel's parent-death signal would do less: it ends
    the child before it can take an engine's own subprocesses with it.
    """
    os.set_inheritable(fd, False)
    threading.Thread(target=_watch, args=(fd,), name="lifeline", daemon=True).start()


def _watch(fd: int) -> None:
    while os.read(fd, 1):  # nobody writes; an empty read means that the write end is gone
        pass
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)
