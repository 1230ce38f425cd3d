"""Peers that are cut off or stand still are lost within the heartbeats' time, and nobody else is."""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from dynamo_core.contracts import Context, Instance
from dynamo_core.errors import CannotConnect, Disconnected
from dynamo_core.runtime.planes.tcp import TcpConfig, TcpPlane
from dynamo_core.specs import PlaneContext
from dynamo_core.testing.cut_proxy import CutProxy

BEAT = 0.05
MISSED = 4
SOON = 5.0
"""Many times the heartbeats' time: the machine may be busy."""


class Server:
    """Streams numbers until its context is killed."""

    def __init__(self) -> None:
        self.killed = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    def __call__(self, request: Any, context: Context, sink: Any) -> None:
        if request == "hello":
            sink.item("hello")
            sink.end()
            return
        context.on_cancel(lambda killed: self.killed.set() if killed else None)
        task = asyncio.create_task(self._count(context, sink))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _count(self, context: Context, sink: Any) -> None:
        number = 0
        while not context.is_killed():
            sink.item(number)
            number += 1
            await asyncio.sleep(BEAT / 10)


def instance(address: str) -> Instance:
    return Instance(instance_id=7, namespace="test", component="backend", endpoint="generate", address=address)


@pytest.fixture
async def make(folder: str) -> AsyncIterator[Callable[..., TcpPlane]]:
    planes = []

    def made(number: int, **config: Any) -> TcpPlane:
        settings = TcpConfig(**{"heartbeat_secs": BEAT, "heartbeats_missed": MISSED, **config})
        planes.append(TcpPlane(settings, PlaneContext(namespace="test", run_dir=folder, instance_id=number)))
        return planes[-1]

    yield made
    for plane in planes:
        await plane.close()


@pytest.fixture
async def proxy() -> AsyncIterator[CutProxy]:
    async with CutProxy() as made:
        yield made


@pytest.mark.parametrize("cut", [{"up": False}, {"down": False}, {}], ids=["to the client", "to the server", "both ways"])
async def test_a_cut_network_ends_streams_on_both_sides_and_heals(
    make: Any, proxy: CutProxy, new_receiver: Any, cut: dict[str, bool]
) -> None:
    server, handler = make(7, host="127.0.0.1", advertise=f"127.0.0.1:{proxy.port}"), Server()
    address = await server.serve("test.backend.generate", handler)
    assert address == f"tcp:127.0.0.1:{proxy.port}"
    proxy.target = server._server.sockets[0].getsockname()[1]
    client, gone = make(8), asyncio.Event()
    client.on_gone(lambda address, endpoint: gone.set())
    receiver = new_receiver()
    client.open(instance(address), "count", Context(), receiver)
    await receiver.have(5)

    proxy.cut(**cut)
    await asyncio.wait_for(gone.wait(), SOON)
    with pytest.raises(Disconnected, match=f"{proxy.port}.*did not answer"):
        await receiver.result()
    await asyncio.wait_for(handler.killed.wait(), SOON)

    proxy.heal()
    again = new_receiver()
    client.open(instance(address), "hello", Context(), again)
    assert await again.result() == ["hello"]


async def test_an_idle_connection_and_a_busy_one_outlive_many_beats(make: Any, proxy: CutProxy, new_receiver: Any) -> None:
    server, client, gone = make(7, host="127.0.0.1"), make(8), asyncio.Event()
    address = await server.serve("test.backend.generate", Server())
    client.on_gone(lambda address, endpoint: gone.set())
    await client.connect(instance(address))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(gone.wait(), BEAT * MISSED * 3)
    receiver = new_receiver()
    client.open(instance(address), "count", Context(), receiver)
    await receiver.have(150)
    assert not gone.is_set()


async def test_a_process_that_stood_still_itself_blames_nobody(make: Any, new_receiver: Any) -> None:
    server, client, gone = make(7, host="127.0.0.1"), make(8), asyncio.Event()
    address = await server.serve("test.backend.generate", Server())
    client.on_gone(lambda address, endpoint: gone.set())
    receiver = new_receiver()
    client.open(instance(address), "count", Context(), receiver)
    await receiver.have(1)
    time.sleep(BEAT * MISSED * 2)  # noqa: ASYNC251  # to block the loop is the point
    await receiver.have(100)
    assert not gone.is_set()


STANDING = """
import asyncio, sys
from dynamo_core.runtime.planes.tcp import TcpConfig, TcpPlane
from dynamo_core.specs import PlaneContext

async def main():
    plane = TcpPlane(TcpConfig(), PlaneContext(namespace="test", run_dir=sys.argv[1], instance_id=7))
    print(await plane.serve("test.backend.generate", lambda request, context, sink: sink.item(1)), flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


async def test_a_process_that_stands_still_is_lost_on_a_unix_socket_too(make: Any, folder: str, new_receiver: Any) -> None:
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", STANDING, folder, stdout=asyncio.subprocess.PIPE)
    try:
        assert process.stdout is not None
        address = (await process.stdout.readline()).decode().strip()
        client, receiver = make(8), new_receiver()
        client.open(instance(address), 1, Context(), receiver)
        await receiver.have(1)
        process.send_signal(signal.SIGSTOP)
        with pytest.raises(Disconnected, match="did not answer"):
            await receiver.result()
    finally:
        process.kill()
        await process.wait()


async def test_an_address_that_swallows_everything_is_cannot_connect(
    make: Any, proxy: CutProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dynamo_core.runtime.planes.multiplex._CONNECT_SECONDS", 0.2)
    proxy.cut()
    with pytest.raises(CannotConnect, match=str(proxy.port)):
        await make(8).connect(instance(f"tcp:127.0.0.1:{proxy.port}"))
