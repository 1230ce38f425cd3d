"""What an operator can ask of a worker on its status server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from dynamo_core.runtime import DistributedRuntime
    from dynamo_core.serving.worker import EngineWorker

__all__ = ["add_controls"]


def add_controls(runtime: DistributedRuntime, worker: EngineWorker, metrics: Callable[[], bytes] | None) -> None:
    """``/engine/status``, ``/engine/sleep`` and ``/engine/wake``, and the engine's own series beside the runtime's. They wait: a
    sleep is answered once what ran is over and the engine asleep."""

    async def status(_body: Mapping[str, Any]) -> dict[str, Any]:
        card = worker.card
        return {
            "worker_id": runtime.instance_id,
            "model": card.name if card is not None else None,
            "asleep": worker.asleep,
            "running": worker.running,
            "load": msgspec.to_builtins(worker.load()),
        }

    async def sleep(body: Mapping[str, Any]) -> dict[str, Any]:
        await worker.sleep()
        return await status(body)

    async def wake(body: Mapping[str, Any]) -> dict[str, Any]:
        await worker.wake()
        return await status(body)

    for name, function in (("status", status), ("sleep", sleep), ("wake", wake)):
        runtime.register_engine_route(name, function)
    if metrics is not None:
        runtime.scrapes.append(lambda: asyncio.to_thread(metrics))
