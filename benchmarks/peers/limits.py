"""What a measurement may take: time, so that nothing that hangs stops a run, and open files."""

from __future__ import annotations

import contextlib
import resource
import signal
from collections.abc import Iterator

__all__ = ["TooLong", "allow_files", "within"]


class TooLong(Exception):
    """Raised in the midst of what took longer than allowed, wherever it waits."""


@contextlib.contextmanager
def within(seconds: float) -> Iterator[None]:
    """Raises :class:`TooLong`. For the main thread; not to be nested."""

    def over(*_: object) -> None:
        raise TooLong(f"cut after {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def allow_files(count: int) -> int:
    """Let this process, and those that it starts from here on, open so many files. Returns how many of them they may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= count:
        return count
    allowed = count if hard == resource.RLIM_INFINITY else min(count, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    return allowed
