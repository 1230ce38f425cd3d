"""Which worker gets which processor cores."""

from __future__ import annotations

import os
from collections.abc import Sequence

__all__ = ["available_cores", "split_cores"]


def available_cores() -> tuple[int, ...]:
    """The cores that this process may use; empty where the system does not say."""
    if not hasattr(os, "sched_getaffinity"):
        return ()
    return tuple(sorted(os.sched_getaffinity(0)))


def split_cores(cores: Sequence[int], workers: int) -> list[tuple[int, ...]]:
    """Neighbouring cores for each worker, as even as can be; with fewer cores than workers, workers share one core each."""
    if not cores:
        return [()] * workers
    if len(cores) < workers:
        return [(cores[index % len(cores)],) for index in range(workers)]
    return [tuple(cores[len(cores) * index // workers : len(cores) * (index + 1) // workers]) for index in range(workers)]
