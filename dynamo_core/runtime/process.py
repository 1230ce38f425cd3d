"""The runtime of a process, as its settings say."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from dynamo_core.runtime.canary import CanarySettings
from dynamo_core.runtime.distributed import DistributedRuntime

if TYPE_CHECKING:
    from dynamo_core.config import Settings
    from dynamo_core.plugins import Compiled

__all__ = ["process_runtime", "tell_ignored"]

_log = logging.getLogger(__name__)


def process_runtime(settings: Settings, compiled: Compiled, *, status_server: bool = True) -> DistributedRuntime:
    """Not started yet. ``compiled`` has its store and its planes; those that it lacks are activated without a configuration.

    ``status_server`` false: the process answers ``/live`` and ``/metrics`` otherwise, or nobody asks it.
    """
    return DistributedRuntime(
        None,
        settings.discovery_backend,
        settings.request_plane,
        event_plane=settings.event_plane,
        namespace=settings.namespace,
        run_dir=settings.run_dir,
        compiled=compiled,
        file_kv=settings.file_kv,
        grace=settings.graceful_shutdown_secs,
        blocking_threads=settings.runtime_max_blocking_threads,
        system=(settings.system_host, settings.system_port) if status_server and settings.system_port >= 0 else None,
        canary=CanarySettings(
            enabled=settings.health_check_enabled,
            wait=settings.canary_wait_secs,
            timeout=settings.health_check_timeout_secs,
        ),
    )


def tell_ignored(settings: Settings) -> None:
    """Log which settings of the environment have no effect here."""
    if settings.runtime_num_worker_threads is not None:
        _log.warning(
            "DYN_RUNTIME_NUM_WORKER_THREADS=%d has no effect: a process has one event loop; start more processes",
            settings.runtime_num_worker_threads,
        )
