"""Every asynchronous test here runs on asyncio's own loop and on uvloop."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import Any

import pytest
import uvloop

from dynamo_core.contracts import Context, Instance
from dynamo_core.errors import DynamoError
from dynamo_core.runtime.planes.inproc import InprocHub, InprocPlane
from dynamo_core.runtime.planes.multiplex import MultiplexPlane
from dynamo_core.runtime.planes.tcp import TcpConfig, TcpPlane
from dynamo_core.specs import PlaneContext
from dynamo_core.testing.provision import required_module, required_server
from dynamo_core.testing.servers import EtcdServer, NatsServer


def pytest_asyncio_loop_factories(config: Any, item: Any) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


class Receiver:
    """Collects a stream. ``items`` so far, ``error`` if it failed; ``ended`` is set by its end or its error."""

    def __init__(self) -> None:
        self.items: list[Any] = []
        self.error: DynamoError | None = None
        self.calls = 0
        self.ended = asyncio.Event()
        self._wakers: list[tuple[int, asyncio.Event]] = []

    def on_items(self, items: list[Any]) -> None:
        self.calls += 1
        self.items += items
        for count, event in self._wakers:
            if len(self.items) >= count:
                event.set()

    def on_end(self) -> None:
        self.ended.set()

    def on_error(self, error: DynamoError) -> None:
        self.error = error
        self.ended.set()

    async def have(self, count: int) -> None:
        """Wait until ``count`` items have arrived."""
        if len(self.items) < count:
            event = asyncio.Event()
            self._wakers.append((count, event))
            await asyncio.wait_for(event.wait(), 20)

    async def result(self) -> list[Any]:
        await asyncio.wait_for(self.ended.wait(), 20)
        if self.error is not None:
            raise self.error
        return self.items


class Pair:
    """A serving and a calling plane."""

    def __init__(self, server: MultiplexPlane, client: MultiplexPlane) -> None:
        self.server = server
        self.client = client
        self.address = ""

    async def serve(self, handler: Any, endpoint: str = "generate") -> None:
        self.address = await self.server.serve(f"test.backend.{endpoint}", handler)

    def instance(self, endpoint: str = "generate", instance_id: int = 7) -> Instance:
        return Instance(instance_id=instance_id, namespace="test", component="backend", endpoint=endpoint, address=self.address)

    def open(self, request: Any, context: Context | None = None, endpoint: str = "generate") -> tuple[Any, Receiver]:
        receiver = Receiver()
        return self.client.open(self.instance(endpoint), request, context or Context(), receiver), receiver


@pytest.fixture(scope="session")
def new_receiver() -> type[Receiver]:
    return Receiver


@pytest.fixture
def folder() -> Iterator[str]:
    """A short path: sockets live in it."""
    with tempfile.TemporaryDirectory(prefix="dyn-") as path:
        yield path


@pytest.fixture(scope="session")
def nats(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a real server."""
    server = NatsServer(required_server("nats-server"), tmp_path_factory.mktemp("nats"))
    server.start()
    yield server.url
    server.stop()


@pytest.fixture(scope="session")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a real server."""
    server = EtcdServer(required_server("etcd"), tmp_path_factory.mktemp("etcd"))
    server.start()
    yield server.url
    server.stop()


@pytest.fixture(params=["inproc", "unix", "tcp", "nats"])
async def pair(request: pytest.FixtureRequest, folder: str) -> AsyncIterator[Pair]:
    def context(number: int) -> PlaneContext:
        return PlaneContext(namespace="test", run_dir=folder, instance_id=number)

    server: MultiplexPlane
    client: MultiplexPlane
    if request.param == "inproc":
        hub = InprocHub()
        server, client = InprocPlane(context(7), hub), InprocPlane(context(8), hub)
    elif request.param == "nats":
        requests = required_module("dynamo_nats.requests")
        options = required_module("dynamo_nats").NatsConfig(servers=(request.getfixturevalue("nats"),))
        server, client = requests.NatsRequests(options, context(7)), requests.NatsRequests(options, context(8))
    else:
        config = TcpConfig(host="127.0.0.1") if request.param == "tcp" else TcpConfig()
        server, client = TcpPlane(config, context(7)), TcpPlane(config, context(8))
    yield Pair(server, client)
    await client.close()
    await server.close()
