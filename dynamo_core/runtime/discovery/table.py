"""The known state of a store, and those who watch it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping

from dynamo_core.contracts.discovery import Deleted, DiscoveryEvent, Put, Synced

__all__ = ["Table"]


class Table:
    """Keys and values as last seen. A watcher that is slow finds the newest state of each key, not every step to it."""

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}
        self._watchers: set[_Watcher] = set()

    def put(self, key: str, value: bytes) -> None:
        if self.values.get(key) != value:
            self.values[key] = value
            self._tell(key, Put(key, value))

    def delete(self, key: str) -> None:
        if self.values.pop(key, None) is not None:
            self._tell(key, Deleted(key))

    def replace(self, values: Mapping[str, bytes]) -> None:
        """Make ``values`` the state: what is missing from it was deleted."""
        for key in [key for key in self.values if key not in values]:
            self.delete(key)
        for key, value in values.items():
            self.put(key, value)

    def resynced(self) -> None:
        """Tell every watcher that the state is whole again, after what was told before."""
        for watcher in self._watchers:
            watcher.tell("", Synced())

    def prefix(self, prefix: str) -> dict[str, bytes]:
        return {key: value for key, value in self.values.items() if key.startswith(prefix)}

    async def watch(self, prefix: str) -> AsyncIterator[DiscoveryEvent]:
        watcher = _Watcher(prefix)
        self._watchers.add(watcher)
        try:
            for key, value in self.prefix(prefix).items():
                yield Put(key, value)
            yield Synced()
            while True:
                for event in await watcher.take():
                    yield event
        finally:
            self._watchers.discard(watcher)

    def _tell(self, key: str, event: Put | Deleted) -> None:
        for watcher in self._watchers:
            if key.startswith(watcher.prefix):
                watcher.tell(key, event)


class _Watcher:
    __slots__ = ("_changed", "_events", "prefix")

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self._events: dict[str, DiscoveryEvent] = {}
        self._changed = asyncio.Event()

    def tell(self, key: str, event: DiscoveryEvent) -> None:
        self._events.pop(key, None)
        self._events[key] = event
        self._changed.set()

    async def take(self) -> list[DiscoveryEvent]:
        await self._changed.wait()
        self._changed.clear()
        events = list(self._events.values())
        self._events.clear()
        return events
