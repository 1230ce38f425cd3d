"""Busy thresholds that are changed while frontends run: what one of them is told holds for all of the namespace.

Each frontend keeps a copy of the latest in discovery, ``thresholds/namespace/model in hexadecimal/instance id``, so that they
outlive the one that was told, and frontends that come later learn of them. They are forgotten with the last frontend.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine, Mapping

import msgspec

from dynamo_core.contracts import BusyThresholds, Put
from dynamo_core.errors import DynamoError
from dynamo_core.runtime import DistributedRuntime
from dynamo_core.serving.served_model import ServedModel

__all__ = ["ThresholdBoard"]

_log = logging.getLogger(__name__)

_RETRY_SECONDS = 1.0


class _Notice(msgspec.Struct, frozen=True):
    stamp: int
    """Nanoseconds since the epoch; the latest holds."""
    thresholds: BusyThresholds


class ThresholdBoard:
    """``models`` is read when something changes."""

    def __init__(self, runtime: DistributedRuntime, namespace: str, models: Mapping[str, ServedModel]) -> None:
        self._runtime = runtime
        self._prefix = f"thresholds/{namespace}/"
        self._models = models
        self._latest: dict[str, _Notice] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        self._spawn(self._watch())

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def set(self, model: str, thresholds: BusyThresholds) -> None:
        """In force here when this returns, and soon after with the other frontends."""
        notice = _Notice(time.time_ns(), thresholds)
        self._take(model, notice)
        await self._publish(model, notice)

    def apply(self, served: ServedModel) -> None:
        """To a model that has just become known."""
        notice = self._latest.get(served.name)
        if notice is not None:
            served.set_busy_thresholds(notice.thresholds)

    def _take(self, model: str, notice: _Notice) -> bool:
        known = self._latest.get(model)
        if known is not None and known.stamp >= notice.stamp:
            return False
        self._latest[model] = notice
        served = self._models.get(model)
        if served is not None:
            served.set_busy_thresholds(notice.thresholds)
        return True

    async def _publish(self, model: str, notice: _Notice) -> None:
        key = f"{self._prefix}{model.encode().hex()}/{self._runtime.instance_id:x}"
        await self._runtime.discovery.put(key, msgspec.json.encode(notice))

    async def _watch(self) -> None:
        while True:
            try:
                async for event in self._runtime.discovery.watch(self._prefix):
                    if isinstance(event, Put):
                        self._hear(event.key, event.value)
            except DynamoError as error:
                _log.warning("thresholds set elsewhere cannot be followed: %s; trying again", error.message)
            await asyncio.sleep(_RETRY_SECONDS)

    def _hear(self, key: str, value: bytes) -> None:
        try:
            model = bytes.fromhex(key.removeprefix(self._prefix).partition("/")[0]).decode()
            notice = msgspec.json.decode(value, type=_Notice)
        except ValueError:
            _log.warning("%s in discovery holds no thresholds", key)
            return
        if self._take(model, notice):
            _log.info("busy thresholds of model %s are %s", model, notice.thresholds)
            self._spawn(self._publish(model, notice))

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task: asyncio.Task[None] = asyncio.create_task(work, name="busy thresholds")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
