"""How a process hears that it shall end."""

from __future__ import annotations

import asyncio
import signal
import sys

__all__ = ["stop_on_signal"]


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
