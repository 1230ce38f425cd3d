"""Plugin ``mem``: discovery within one process.

Runtimes of one process see each other when they are given :class:`MemDiscovery` objects of one :class:`Table`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable

from dynamo_core.contracts.discovery import DiscoveryEvent
from dynamo_core.hookspecs import hookimpl
from dynamo_core.runtime.discovery.table import Table
from dynamo_core.specs import DiscoverySpec

__all__ = ["MemDiscovery", "dynamo_discovery"]


class MemDiscovery:
    def __init__(self, table: Table | None = None) -> None:
        self._table = table or Table()
        self._own: set[str] = set()

    async def start(self) -> None:
        pass

    async def put(self, key: str, value: bytes) -> None:
        self._own.add(key)
        self._table.put(key, value)

    async def delete(self, key: str) -> None:
        self._own.discard(key)
        self._table.delete(key)

    async def get_prefix(self, prefix: str) -> dict[str, bytes]:
        return self._table.prefix(prefix)

    def watch(self, prefix: str) -> AsyncIterator[DiscoveryEvent]:
        return self._table.watch(prefix)

    async def close(self) -> None:
        for key in self._own:
            self._table.delete(key)
        self._own.clear()


@hookimpl
def dynamo_discovery() -> Iterable[DiscoverySpec]:
    yield DiscoverySpec(name="mem", factory=lambda _config, _context: MemDiscovery(), description="Within one process.")
