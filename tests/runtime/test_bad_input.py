"""What callers and operators get wrong is a typed error that names the endpoint or the address, and nothing waits for ever."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from dynamo_core.errors import CannotConnect, ConfigError, EngineError, InvalidRequest, NoInstances, StartupError
from dynamo_core.plugins import activate
from dynamo_core.runtime import DistributedRuntime
from dynamo_core.runtime.discovery import Table
from dynamo_core.runtime.discovery.mem import MemDiscovery
from dynamo_core.runtime.planes.inproc import InprocHub, InprocPlane
from dynamo_core.specs import PlaneContext
from dynamo_core.testing.servers import free_port

PATH = "test.backend.generate"


class Host:
    """Runtimes of one process that share a store, and a network."""

    def __init__(self) -> None:
        self.table = Table()
        self.hub = InprocHub()
        self.runtimes: list[DistributedRuntime] = []
        self.tasks: list[asyncio.Task[Any]] = []

    def runtime(self, instance_id: int | None = None) -> DistributedRuntime:
        runtime = DistributedRuntime(None, MemDiscovery(self.table), event_plane="inproc", grace=0.1)
        runtime.instance_id = instance_id or runtime.instance_id
        context = PlaneContext(namespace="test", run_dir="", instance_id=runtime.instance_id)
        runtime._choices = (runtime._choices[0], InprocPlane(context, self.hub), runtime._choices[2])
        self.runtimes.append(runtime)
        return runtime

    async def client(self, handler: Callable[..., Any]) -> Any:
        """Of a server with this handler."""
        self.tasks.append(asyncio.create_task(self.runtime().endpoint(PATH).serve_endpoint(handler)))
        client = await self.runtime().endpoint(PATH).client()
        await client.wait_for_instances(10)
        return client


@pytest.fixture
async def host() -> AsyncIterator[Host]:
    made = Host()
    yield made
    for runtime in made.runtimes:
        await runtime.shutdown()
    await asyncio.gather(*made.tasks, return_exceptions=True)


async def collect(stream: Any) -> list[Any]:
    async with asyncio.timeout(10):
        return [item async for item in stream]


async def test_an_unknown_endpoint(host: Host) -> None:
    client = await host.runtime().endpoint("test.backend.unknown").client()
    for call in (client.generate, client.random, client.static):
        with pytest.raises(NoInstances, match=r"test\.backend\.unknown"):
            await call(1)
    with pytest.raises(NoInstances, match=r"instance 63 does not serve test\.backend\.unknown"):
        client.direct(1, 99)


async def test_no_instance_within_the_wait_time(host: Host) -> None:
    client = await host.runtime().endpoint(PATH).client()
    with pytest.raises(NoInstances, match=r"nobody serves test\.backend\.generate after 0\.05 s; no endpoint at all is alive"):
        await client.wait_for_instances(0.05)


@pytest.mark.parametrize("before", [True, False])
async def test_a_handler_that_raises(host: Host, before: bool) -> None:
    async def fail(request: Any) -> AsyncIterator[int]:
        if before:
            raise LookupError("lost")
        yield 1
        raise LookupError("lost")

    stream = (await host.client(fail)).generate(1)
    if not before:
        assert (await anext(stream)).data() == 1
    with pytest.raises(EngineError, match=r"handler of test\.backend\.generate raised LookupError: lost"):
        await anext(stream)


async def test_a_request_and_a_response_that_cannot_be_encoded(host: Host) -> None:
    async def odd(request: Any) -> AsyncIterator[Any]:
        yield {"ok"} if request == "set" else object()

    client = await host.client(odd)
    with pytest.raises(InvalidRequest, match=r"request to test\.backend\.generate cannot be sent as msgpack"):
        await collect(client.generate(object()))
    with pytest.raises(EngineError, match=r"response of test\.backend\.generate cannot be sent as msgpack"):
        await collect(client.generate("object"))


async def test_a_lease_that_lapsed(host: Host) -> None:
    waiting = asyncio.Event()

    async def slow(request: Any) -> AsyncIterator[int]:
        yield 1
        await waiting.wait()
        yield 2

    client = await host.client(slow)
    (instance_id,) = client.instance_ids()
    stream = client.generate(1)
    assert (await anext(stream)).data() == 1
    gone = asyncio.Event()
    client.on_change(removed=lambda _: gone.set())
    (key,) = host.table.prefix("instances/")
    host.table.delete(key)  # as a store does when the lease lapses
    await asyncio.wait_for(gone.wait(), 10)
    with pytest.raises(NoInstances, match=rf"instance {instance_id:x} does not serve test\.backend\.generate"):
        client.direct(1, instance_id)
    waiting.set()
    assert [item.data() async for item in stream] == [2]  # what runs goes on


async def test_two_instances_with_one_id(host: Host) -> None:
    async def echo(request: Any) -> AsyncIterator[Any]:
        yield request

    first, second = host.runtime(7), host.runtime(7)
    served = await first.endpoint(PATH).serve(lambda request, context, sink: sink.end())
    listeners = dict(host.hub.listeners)
    second.request_plane_name = first.request_plane_name
    with pytest.raises(ConfigError, match=r"serves test\.backend\.generate already, as instance 7"):
        await first.endpoint(PATH).serve_endpoint(echo)

    async def elsewhere(endpoint: str, handler: Any) -> str:
        return "tcp:10.0.0.9:1"

    await second.start()
    second.request_plane.serve = elsewhere  # type: ignore[method-assign]
    with pytest.raises(
        StartupError, match=r"instance 7 of test\.backend\.generate is there already, at inproc:7 \(process \d+ of"
    ):
        await second.endpoint(PATH).serve_endpoint(echo)
    assert host.hub.listeners == listeners
    assert len(host.table.prefix("instances/")) == 1
    await served.close()
    assert host.table.prefix("instances/") == {}


async def test_a_wrong_address_of_etcd() -> None:
    pytest.importorskip("dynamo_etcd")
    url = f"http://127.0.0.1:{free_port()}"
    compiled = activate(["etcd"], tables={"etcd": {"endpoints": [url], "connect_timeout_secs": 0.2}})
    with pytest.raises(StartupError, match=url):
        await DistributedRuntime(None, "etcd", compiled=compiled).start()


async def test_a_store_that_tells_nothing(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dynamo_core.runtime.client._SYNC_SECONDS", 0.05)

    class Silent(MemDiscovery):
        async def watch(self, prefix: str) -> AsyncIterator[Any]:  # type: ignore[override]
            await asyncio.Event().wait()
            yield

    runtime = host.runtime()
    runtime._choices = (Silent(), *runtime._choices[1:])
    with pytest.raises(CannotConnect, match=r"within 0\.05 s who serves test\.backend\.generate"):
        await runtime.endpoint(PATH).client()
    assert not runtime.clients
