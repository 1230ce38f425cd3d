"""Which worker gets which processor cores and which graphics cards."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

__all__ = ["VISIBLE_GPUS", "available_cores", "available_gpus", "split_cores", "with_gpus"]

VISIBLE_GPUS = "CUDA_VISIBLE_DEVICES"

Core = TypeVar("Core", int, str)


def available_cores() -> tuple[int, ...]:
    """The cores that this process may use; empty where the system does not say."""
    if not hasattr(os, "sched_getaffinity"):
        return ()
    return tuple(sorted(os.sched_getaffinity(0)))


def available_gpus(environ: Mapping[str, str], devices: Path = Path("/dev")) -> tuple[str, ...]:
    """NVIDIA's cards that this process may use, as ``CUDA_VISIBLE_DEVICES`` names them. Looks at files: no driver is called."""
    named = environ.get(VISIBLE_GPUS)
    if named is not None:
        return tuple(name.strip() for name in named.split(",") if name.strip())
    numbers = [int(match[1]) for path in devices.glob("nvidia*") if (match := re.fullmatch(r"nvidia(\d+)", path.name))]
    return tuple(map(str, sorted(numbers)))


def with_gpus(environ: Mapping[str, str], gpus: Sequence[str], workers: int) -> list[dict[str, str]]:
    """The environment of each worker: several workers share out several cards; otherwise nothing is changed."""
    if workers < 2 or len(gpus) < 2:
        return [dict(environ)] * workers
    return [{**environ, VISIBLE_GPUS: ",".join(own)} for own in split_cores(gpus, workers)]


def split_cores(cores: Sequence[Core], workers: int) -> list[tuple[Core, ...]]:
    """Neighbouring cores for each worker, as even as can be; with fewer cores than workers, workers share one core each."""
    if not cores:
        return [()] * workers
    if len(cores) < workers:
        return [(cores[index % len(cores)],) for index in range(workers)]
    return [tuple(cores[len(cores) * index // workers : len(cores) * (index + 1) // workers]) for index in range(workers)]
