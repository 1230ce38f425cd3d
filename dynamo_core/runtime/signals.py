"""How a process hears that it shall end, or read its configuration again."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable

__all__ = ["on_hangup", "stop_on_signal"]


def stop_on_signal() -> asyncio.Event:
    """Set by the first SIGTERM or SIGINT; the second ends the process on the spot. Called on the main thread's event loop."""
    stop = asyncio.Event()

    def on_signal() -> None:
        if stop.is_set():
            sys.stderr.flush()
            signal.raise_signal(signal.SIGKILL)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, on_signal)
    return stop


def on_hangup(reload: Callable[[], None], gone: Callable[[], None]) -> Callable[[], None]:
    """Call ``reload`` on SIGHUP, or ``gone`` when it comes because the terminal that the process had is gone.

    Who ignores SIGHUP, as under nohup, stays without a terminal. Returns what unregisters it.
    """
    loop = asyncio.get_running_loop()
    stays = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN or not _has_terminal()

    def on_signal() -> None:
        if stays or _has_terminal():
            reload()
        else:
            gone()

    loop.add_signal_handler(signal.SIGHUP, on_signal)

    def unregister() -> None:
        loop.remove_signal_handler(signal.SIGHUP)

    return unregister


def _has_terminal() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True
