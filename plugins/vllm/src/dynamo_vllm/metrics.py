"""vLLM's own metrics, and the reading of its queues."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from prometheus_client import REGISTRY, generate_latest
from prometheus_client.metrics_core import Metric

__all__ = ["SchedulerReading", "vllm_metrics"]

PREFIX = "vllm:"


class _VllmFamilies:
    """The part of the process's registry that vLLM fills.

    Read from the registry of this process, never from a folder of ``PROMETHEUS_MULTIPROC_DIR``, where files of dead processes
    live on. vLLM takes its collectors out of the registry before it makes them anew, so that no series appears twice.
    """

    def collect(self) -> Iterator[Metric]:
        seen: set[str] = set()
        for family in REGISTRY.collect():
            if family.name.startswith(PREFIX) and family.name not in seen:
                seen.add(family.name)
                yield family


def vllm_metrics() -> bytes:
    """Prometheus text. From any thread."""
    return generate_latest(_VllmFamilies())


class SchedulerReading:
    """A stat logger for vLLM that remembers the last statistics of each engine core (one a data-parallel rank)."""

    def __init__(self) -> None:
        self._stats: dict[int, tuple[int, int, float]] = {}

    def __call__(self, _vllm_config: Any, engine_index: int = 0) -> _RankReading:
        return _RankReading(self._stats, engine_index)

    @property
    def running(self) -> int:
        return sum(running for running, _, _ in self._stats.values())

    @property
    def waiting(self) -> int:
        return sum(waiting for _, waiting, _ in self._stats.values())

    @property
    def kv_usage(self) -> float:
        """Share of the KV blocks in use, 0 to 1."""
        return sum(usage for _, _, usage in self._stats.values()) / (len(self._stats) or 1)


class _RankReading:
    """What vLLM calls a per-engine stat logger (``vllm.v1.metrics.loggers.StatLoggerBase``, which cannot be imported early)."""

    def __init__(self, stats: dict[int, tuple[int, int, float]], engine_index: int) -> None:
        self._stats = stats
        self._index = engine_index

    def record(self, scheduler_stats: Any, *_others: Any, **_more: Any) -> None:
        if scheduler_stats is not None:
            skipped = getattr(scheduler_stats, "num_skipped_waiting_reqs", 0)
            waiting = scheduler_stats.num_waiting_reqs + skipped
            self._stats[self._index] = (scheduler_stats.num_running_reqs, waiting, scheduler_stats.kv_cache_usage)

    def log_engine_initialized(self) -> None: ...

    def log(self) -> None: ...

    def record_sleep_state(self, *_state: Any, **_more: Any) -> None: ...
