"""What NATS adds to the behaviour of a request plane: processes that die or stand still, messages that are lost, outages."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from nats.aio.client import Client

from dynamo_core.contracts import Context, Instance
from dynamo_core.errors import CannotConnect, Disconnected
from dynamo_core.specs import PlaneContext
from dynamo_core.testing.servers import NatsServer
from dynamo_nats import NatsConfig
from dynamo_nats.pipe import Kind, pack
from dynamo_nats.requests import NatsRequests

SERVER = """
import asyncio, sys
from dynamo_core.specs import PlaneContext
from dynamo_nats import NatsConfig
from dynamo_nats.requests import NatsRequests

async def main():
    plane = NatsRequests(NatsConfig(servers=(sys.argv[1],)), PlaneContext(namespace="n", run_dir="/", instance_id=7))
    print(await plane.serve("n.c.e", lambda request, context, sink: sink.item(request)), flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


class Receiver:
    def __init__(self) -> None:
        self.items: list[Any] = []
        self.error: Exception | None = None
        self.changed = asyncio.Event()

    def on_items(self, items: list[Any]) -> None:
        self.items += items
        self.changed.set()

    def on_end(self) -> None:
        self.changed.set()

    def on_error(self, error: Exception) -> None:
        self.error = error
        self.changed.set()

    async def have(self, items: list[Any]) -> None:
        async with asyncio.timeout(10):
            while self.items != items and self.error is None:
                self.changed.clear()
                await self.changed.wait()
        assert self.error is None

    async def failure(self) -> Exception:
        async with asyncio.timeout(10):
            while self.error is None:
                self.changed.clear()
                await self.changed.wait()
        return self.error


def request(plane: NatsRequests, address: str, value: Any) -> Receiver:
    receiver = Receiver()
    instance = Instance(instance_id=7, namespace="n", component="c", endpoint="e", address=address)
    plane.open(instance, value, Context(), receiver)
    return receiver


@pytest.fixture
async def plane(nats: NatsServer) -> AsyncIterator[Callable[..., NatsRequests]]:
    made = []

    def make(number: int = 8, **config: Any) -> NatsRequests:
        context = PlaneContext(namespace="n", run_dir="/", instance_id=number)
        made.append(NatsRequests(NatsConfig(servers=(nats.url,), **config), context))
        return made[-1]

    yield make
    for one in made:
        await one.close()


@contextlib.asynccontextmanager
async def server_process(url: str) -> Any:
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", SERVER, url, stdout=asyncio.subprocess.PIPE)
    try:
        yield process, (await process.stdout.readline()).decode().strip()
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def hold(value: Any, context: Context, sink: Any) -> None:
    """Answers once and leaves the stream open."""
    sink.item(value)


async def test_a_killed_process_is_noticed_within_a_second(nats: NatsServer, plane: Any) -> None:
    async with server_process(nats.url) as (process, address):
        client = plane()
        gone = []
        client.on_gone(lambda address, endpoint: gone.append((address, endpoint)))
        receiver = request(client, address, "x")
        await receiver.have(["x"])
        process.send_signal(signal.SIGKILL)
        async with asyncio.timeout(1.5):
            assert isinstance(await receiver.failure(), Disconnected)
        assert gone == [(address, "")]
        assert isinstance(await request(client, address, "y").failure(), CannotConnect)


async def test_a_process_that_stands_still_is_taken_as_lost(nats: NatsServer, plane: Any) -> None:
    async with server_process(nats.url) as (process, address):
        client = plane(heartbeat_secs=0.1, peer_timeout_secs=0.5)
        receiver = request(client, address, "x")
        await receiver.have(["x"])
        process.send_signal(signal.SIGSTOP)
        assert "silent" in str(await receiver.failure())
        process.send_signal(signal.SIGCONT)
        again = request(client, address, "z")
        await again.have(["z"])


async def test_a_killed_client_ends_its_requests(nats: NatsServer, plane: Any) -> None:
    server, client = plane(7), plane()
    contexts: list[Context] = []

    def handler(value: Any, context: Context, sink: Any) -> None:
        contexts.append(context)
        sink.item(value)

    receiver = request(client, await server.serve("n.c.e", handler), 1)
    await receiver.have([1])
    await client._opening.result()._client.close()  # as the kernel does for a process that dies
    await asyncio.wait_for(contexts[0].async_killed_or_stopped(), 2)
    assert contexts[0].is_killed()


async def test_an_outage_of_nats_ends_streams_and_calls_go_through_after_it(nats: NatsServer, plane: Any) -> None:
    server, client = plane(7), plane()
    address = await server.serve("n.c.e", hold)
    receiver = request(client, address, 1)
    await receiver.have([1])
    nats.kill()
    assert isinstance(await receiver.failure(), Disconnected)
    assert isinstance(await request(client, address, 2).failure(), CannotConnect)
    assert client.out_since is not None
    await asyncio.to_thread(nats.start)
    instance = Instance(instance_id=7, namespace="n", component="c", endpoint="e", address=address)
    async with asyncio.timeout(10):
        while True:
            try:
                await client.connect(instance)
                break
            except CannotConnect:
                await asyncio.sleep(0.05)
    await request(client, address, 3).have([3])
    assert client.out_since is None


async def test_a_lost_message_ends_the_pipe_and_not_the_plane(plane: Any) -> None:
    server, client = plane(7), plane()
    address = await server.serve("n.c.e", hold)
    receiver = request(client, address, 1)
    await receiver.have([1])
    (pipe,) = server._pipes.values()
    pipe._sent += 2
    (stream,) = next(iter(server._accepted)).streams.values()
    stream.item(2)
    assert "2 messages were lost" in str(await receiver.failure())
    await request(client, address, 3).have([3])


@pytest.mark.parametrize(
    "garbage",
    [b"x", b"\xff" * 100, pack(Kind.DATA, 1, b"\xff\xff\xff\xff garbage"), pack(Kind.ACCEPT)],
    ids=["short", "no kind", "no frame", "no reason"],
)
async def test_garbage_ends_at_most_one_pipe_with_one_log_line(nats: NatsServer, plane: Any, caplog: Any, garbage: bytes) -> None:
    server, client = plane(7), plane()
    address = await server.serve("n.c.e", hold)
    receiver = request(client, address, 1)
    await receiver.have([1])
    (pipe,) = server._pipes.values()
    outsider = Client()
    await outsider.connect(nats.url)
    door = address.removeprefix("nats:") + ".connect"
    for subject in (door, f"{door}x", pipe.own):
        await outsider.publish(subject, garbage, reply="nowhere")
        await outsider.publish(subject, b"", reply="nowhere")
    await outsider.flush()
    await outsider.close()
    if garbage != pack(Kind.ACCEPT):
        assert isinstance(await receiver.failure(), Disconnected)
    await request(client, address, 2).have([2])
    complaints = [record for record in caplog.records if pipe.own in record.message or "closing a connection" in record.message]
    assert len(complaints) <= 1


async def test_large_items_pass_a_server_that_takes_small_messages_only(nats_program: str, tmp_path: Path) -> None:
    (tmp_path / "conf").write_text("max_payload: 1024\n")
    small = NatsServer(nats_program, tmp_path / "small", options=["--config", str(tmp_path / "conf")])
    with small:
        context = PlaneContext(namespace="n", run_dir="/", instance_id=7)
        server, client = (NatsRequests(NatsConfig(servers=(small.url,)), context) for _ in range(2))
        large = "x" * 300_000
        await request(client, await server.serve("n.c.e", hold), large).have([large])
        await client.close()
        await server.close()


async def test_a_connection_that_the_server_ends_with_an_error_is_made_again(plane: Any) -> None:
    server, client = plane(7), plane()
    address = await server.serve("n.c.e", hold)
    receiver = request(client, address, 1)
    await receiver.have([1])
    link = server._opening.result()
    link._client._transport.write(b"NONSENSE\r\n")
    assert isinstance(await receiver.failure(), Disconnected)
    await asyncio.wait_for(link._up.wait(), 10)
    await request(client, address, 2).have([2])


async def test_two_processes_with_one_instance_id_have_addresses_of_their_own(plane: Any) -> None:
    one, two, client = plane(7), plane(7), plane()
    first = await one.serve("n.c.e", lambda value, context, sink: sink.item("one"))
    second = await two.serve("n.c.e", lambda value, context, sink: sink.item("two"))
    await request(client, first, 0).have(["one"])
    await request(client, second, 0).have(["two"])


async def test_nothing_is_left_running_after_closing(plane: Any) -> None:
    before = asyncio.all_tasks()
    server, client = plane(7), plane()
    await request(client, await server.serve("n.c.e", hold), 1).have([1])
    await client.close()
    await server.close()
    await asyncio.sleep(0)
    assert not asyncio.all_tasks() - before
