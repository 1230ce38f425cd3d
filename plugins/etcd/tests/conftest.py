"""Every test has an etcd of its own: it is stopped, wiped and compacted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dynamo_core.contracts import Discovery, Synced
from dynamo_core.testing.provision import required_server
from dynamo_core.testing.servers import EtcdServer
from dynamo_etcd import EtcdConfig
from dynamo_etcd.options import from_environment
from dynamo_etcd.store import EtcdDiscovery


@pytest.fixture(scope="session")
def etcd_program() -> str:
    return required_server("etcd")


@pytest.fixture
def etcd(etcd_program: str, tmp_path: Path) -> Iterator[EtcdServer]:
    server = EtcdServer(etcd_program, tmp_path / "etcd")
    server.start()
    yield server
    server.stop()


class Log:
    """What a watch told, and waiting for it."""

    def __init__(self, store: Discovery, prefix: str) -> None:
        self.events: list[Any] = []
        self._arrived = asyncio.Event()
        self.task = asyncio.create_task(self._follow(store, prefix))

    async def until(self, event: Any, count: int = 1, seconds: float = 20) -> None:
        async with asyncio.timeout(seconds):
            while self.events.count(event) < count:
                self._arrived.clear()
                await self._arrived.wait()

    async def _follow(self, store: Discovery, prefix: str) -> None:
        async for event in store.watch(prefix):
            self.events.append(event)
            self._arrived.set()


@pytest.fixture
async def follow() -> AsyncIterator[Callable[..., Any]]:
    """Starts a watch and waits until it has told what is there."""
    logs: list[Log] = []

    async def start(store: Discovery, prefix: str = "") -> Log:
        logs.append(Log(store, prefix))
        await logs[-1].until(Synced())
        return logs[-1]

    yield start
    for log in logs:
        log.task.cancel()
    await asyncio.gather(*(log.task for log in logs), return_exceptions=True)


@pytest.fixture
async def store(request: pytest.FixtureRequest) -> AsyncIterator[Callable[..., Any]]:
    """Makes started stores; they are closed when the test is over."""
    made: list[EtcdDiscovery] = []

    async def make(*endpoints: str, **config: Any) -> EtcdDiscovery:
        options = {"lease_ttl_secs": 2, "connect_timeout_secs": 10, **config}
        one = EtcdDiscovery(from_environment(EtcdConfig(endpoints=endpoints, **options), {}))
        await one.start()
        made.append(one)
        return one

    yield make
    for one in made:
        await one.close()
