"""Several runtimes in one process: the same frames, credit and cancellation as between processes, and nothing to clean up."""

from __future__ import annotations

import contextlib
from typing import Any, Self

from dynamo_core.runtime import DistributedRuntime
from dynamo_core.runtime.discovery.mem import MemDiscovery
from dynamo_core.runtime.discovery.table import Table
from dynamo_core.runtime.planes.inproc import InprocEvents, InprocHub, InprocPlane
from dynamo_core.specs import PlaneContext

__all__ = ["InprocCluster"]


class InprocCluster:
    """An async context manager. Each runtime that it makes plays a process; all are shut down at its end."""

    def __init__(self) -> None:
        self._table = Table()
        self._hub = InprocHub()
        self._count = 0
        self._stack = contextlib.AsyncExitStack()

    async def runtime(self, **options: Any) -> DistributedRuntime:
        """A started runtime; its instance ids count from 1. ``options`` are ``DistributedRuntime``'s."""
        self._count += 1
        context = PlaneContext(namespace="dynamo", run_dir="", instance_id=self._count)
        runtime = DistributedRuntime(
            None,
            MemDiscovery(self._table),
            InprocPlane(context, self._hub),
            event_plane=InprocEvents(context, self._hub),
            **options,
        )
        runtime.instance_id = self._count
        self._stack.push_async_callback(runtime.shutdown)
        await runtime.start()
        return runtime

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()
