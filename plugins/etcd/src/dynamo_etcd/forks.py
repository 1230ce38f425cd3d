"""Keeps the garbage collector still while the process forks.

gRPC frees a channel by waiting for its poller thread, which a forked child does not have: a collection there that meets a channel
never ends, and neither does the parent, which waits until the child has become another program (uvloop starts programs that way,
and Python's own code runs in between). Seen once, in a test that started a program after another had used etcd.
"""

from __future__ import annotations

import gc
import os

__all__ = ["collect_nothing_while_forking"]


def collect_nothing_while_forking() -> None:
    """From here on. What else is registered for the child and was registered before runs without collections, too."""
    enabled = True

    def hold() -> None:
        nonlocal enabled
        enabled = gc.isenabled()
        gc.disable()

    def go_on() -> None:
        if enabled:
            gc.enable()

    if hasattr(os, "register_at_fork"):
        os.register_at_fork(before=hold, after_in_parent=go_on, after_in_child=go_on)
