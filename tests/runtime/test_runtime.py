"""Runtimes that find each other through a folder and talk over Unix sockets, in one process and in several."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from dynamo_core.contracts import Context, Instance
from dynamo_core.errors import (
    Cancelled,
    ConfigError,
    Disconnected,
    EngineError,
    EngineShutdown,
    InvalidRequest,
    NoInstances,
    PluginError,
)
from dynamo_core.plugins import activate
from dynamo_core.runtime import Annotated, Client, DistributedRuntime, parse_endpoint
from dynamo_core.runtime.discovery.mem import MemDiscovery
from dynamo_core.runtime.discovery.table import Table
from dynamo_core.runtime.planes.inproc import InprocEvents, InprocHub, InprocPlane
from dynamo_core.specs import PlaneContext


@pytest.fixture
async def make(tmp_path: Path) -> AsyncIterator[Callable[..., DistributedRuntime]]:
    """Makes runtimes that share a discovery folder."""
    made = []

    def runtime(**options: Any) -> DistributedRuntime:
        made.append(DistributedRuntime(file_kv=str(tmp_path / "kv"), **{"event_plane": "inproc", **options}))
        return made[-1]

    yield runtime
    for one in made:
        await one.shutdown()


async def count(request: int, context: Context) -> AsyncIterator[int]:
    for number in range(request):
        if context.is_stopped():
            break
        yield number


class Serving:
    """An endpoint that is served in a task."""

    def __init__(self, runtime: DistributedRuntime, handler: Any, path: str = "test.backend.generate", **options: Any) -> None:
        self.runtime = runtime
        self.task = asyncio.create_task(runtime.endpoint(path).serve_endpoint(handler, **options))

    async def client(self, caller: DistributedRuntime, path: str = "test.backend.generate") -> Client:
        client = await caller.endpoint(path).client()
        await client.wait_for_instances(10)
        return client


def add_callback(client: Client, kind: str) -> asyncio.Future[Any]:
    """A future of the next added or removed."""
    future = asyncio.get_running_loop().create_future()

    def done(value: Any) -> None:
        if not future.done():
            future.set_result(value)

    client.on_change(**{kind: done})
    return future


async def test_a_served_generator_streams_annotated_items(make: Any) -> None:
    client = await Serving(make(), count).client(make())
    stream = await client.generate(3)
    items = [item async for item in stream]
    assert [item.data() for item in items] == [0, 1, 2]
    assert all(isinstance(item, Annotated) and not item.is_error() for item in items)
    assert [item async for item in client.random(2, annotated=False)] == [0, 1]
    assert [item async for item in client.static(2, False)] == [0, 1]


async def test_the_older_spelling_addresses_the_same_endpoint(make: Any) -> None:
    runtime = make()
    component = runtime.namespace("test").component("backend")
    await component.create_service()
    serving = asyncio.create_task(component.endpoint("generate").serve_endpoint(count))
    client = await make().endpoint("dyn://test.backend.generate").client()
    assert await client.wait_for_instances(10) == [runtime.instance_id]
    await runtime.shutdown()
    await serving


@pytest.mark.parametrize("address", ["a.b", "a.b.c.d", "a..c", "", "dyn://a/b/c", "a.b.c d", "ü.b.c"])
def test_an_address_that_is_none_is_one_sentence(address: str) -> None:
    with pytest.raises(ConfigError, match=r"namespace\.component\.endpoint"):
        parse_endpoint(address)


async def test_requests_go_round_and_direct_picks(make: Any) -> None:
    servers = [make() for _ in range(3)]
    for server in servers:

        async def me(request: Any, server: DistributedRuntime = server) -> AsyncIterator[int]:
            yield server.instance_id

        Serving(server, me)
    client = await make().endpoint("test.backend.generate").client()
    complete = asyncio.Event()
    client.on_change(added=lambda instance: complete.set() if len(client.instance_ids()) == 3 else None)
    await asyncio.wait_for(complete.wait(), 10)
    answers = [item for _ in range(6) async for item in client.round_robin(None, annotated=False)]
    assert sorted(answers) == sorted([server.instance_id for server in servers] * 2)
    assert [item async for item in client.direct(None, servers[1].instance_id, False)] == [servers[1].instance_id]
    assert {instance.instance_id for instance in client.instances()} == {server.instance_id for server in servers}


async def test_no_instances_is_said_at_once(make: Any) -> None:
    client = await make().endpoint("test.backend.nobody").client()
    with pytest.raises(NoInstances):
        await client.generate(1)
    with pytest.raises(NoInstances):
        client.direct(1, 99)
    with pytest.raises(NoInstances, match=r"test.backend.nobody"):
        await client.wait_for_instances(0.01)


async def test_a_coroutine_handler_gives_one_item(make: Any) -> None:
    async def double(request: int) -> int:
        return request * 2

    client = await Serving(make(), double).client(make())
    assert [item async for item in client.generate(4, annotated=False)] == [8]


async def test_a_handlers_errors_reach_the_caller(make: Any) -> None:
    async def fail(request: str) -> AsyncIterator[int]:
        yield 1
        if request == "bug":
            raise ValueError("broken")
        raise InvalidRequest("no", param="x")

    client = await Serving(make(), fail).client(make())
    with pytest.raises(EngineError, match="ValueError: broken"):
        [item async for item in client.generate("bug")]
    with pytest.raises(InvalidRequest):
        [item async for item in client.generate("other")]


# --- cancellation ------------------------------------------------------------------------------------------------------------


async def test_stop_ends_the_stream_gracefully_through_a_middle_service(make: Any) -> None:
    """The chain of Dynamo's cancellation example: the same context goes on downstream."""
    backend_context: asyncio.Future[Context] = asyncio.get_running_loop().create_future()

    async def backend(request: int, context: Context) -> AsyncIterator[int]:
        backend_context.set_result(context)
        for number in range(request):
            if context.is_stopped():
                raise asyncio.CancelledError
            yield number
            await asyncio.sleep(0.001)

    server, middle = make(), make()
    inner = await Serving(server, backend).client(middle)

    async def forward(request: int, context: Context) -> AsyncIterator[int]:
        async for item in await inner.generate(request, annotated=False, context=context):
            yield item

    client = await Serving(middle, forward, "test.middle.generate").client(make(), "test.middle.generate")
    context = Context("the-request")
    received = []
    async for item in await client.generate(1_000_000, annotated=False, context=context):
        received.append(item)
        if len(received) == 3:
            context.stop_generating()
    assert received == list(range(len(received)))
    assert (await backend_context).is_stopped()
    assert (await backend_context).id() == "the-request"


async def test_kill_raises_cancelled_here_and_cancels_the_handler_there(make: Any) -> None:
    cancelled = asyncio.Event()

    async def hang(request: Any, context: Context) -> AsyncIterator[int]:
        yield 1
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    client = await Serving(make(), hang).client(make())
    context = Context()
    stream = client.generate(None, context=context)
    await anext(stream)
    context.kill()
    with pytest.raises(Cancelled):
        await anext(stream)
    await asyncio.wait_for(cancelled.wait(), 5)


@pytest.mark.parametrize("how", ["close", "drop"])
async def test_a_stream_that_is_left_early_is_killed_at_the_server(make: Any, how: str) -> None:
    killed = asyncio.Event()

    async def hang(request: Any, context: Context) -> AsyncIterator[int]:
        yield 1
        try:
            await asyncio.Event().wait()
        finally:
            assert context.is_killed()
            killed.set()

    client = await Serving(make(), hang).client(make())
    stream = client.generate(None)
    await anext(stream)
    if how == "close":
        await stream.aclose()
        with pytest.raises(StopAsyncIteration):
            await anext(stream)
    else:
        del stream
    await asyncio.wait_for(killed.wait(), 5)


async def test_a_slow_reader_holds_the_handler_back(make: Any) -> None:
    produced = 0

    async def produce(request: Any) -> AsyncIterator[int]:
        nonlocal produced
        for produced in range(100_000):
            yield produced

    client = await Serving(make(), produce).client(make())
    stream = client.generate(None, annotated=False)
    before = -1
    for expected in range(10):
        assert await anext(stream) == expected
    while produced != before:  # until it stands still
        before = produced
        await asyncio.sleep(0.05)
    assert produced < 5000
    async for item in stream:
        expected += 1
        assert item == expected
    assert expected == 99_999


# --- leaving and dying -------------------------------------------------------------------------------------------------------


async def test_shutdown_leaves_discovery_finishes_streams_and_ends_serve_endpoint(make: Any) -> None:
    finish = asyncio.Event()

    async def wait(request: Any) -> AsyncIterator[str]:
        yield "begun"
        await finish.wait()
        yield "finished"

    server = make()
    serving = Serving(server, wait)
    client = await serving.client(make())
    stream = client.generate(None, annotated=False)
    assert await anext(stream) == "begun"
    removed = add_callback(client, "removed")
    stopping = server.shutdown()
    assert await asyncio.wait_for(removed, 5) == server.instance_id
    assert client.instance_ids() == []
    assert not stopping.done()
    finish.set()
    assert [item async for item in stream] == ["finished"]
    await asyncio.wait_for(stopping, 5)
    await asyncio.wait_for(serving.task, 5)


async def test_without_graceful_shutdown_streams_are_dropped_for_others_to_take(make: Any) -> None:
    async def hang(request: Any) -> AsyncIterator[int]:
        yield 1
        await asyncio.Event().wait()

    server = make()
    serving = Serving(server, hang, graceful_shutdown=False)
    client = await serving.client(make())
    stream = client.generate(None)
    await anext(stream)
    await asyncio.wait_for(server.shutdown(), 5)
    with pytest.raises(EngineShutdown):
        await anext(stream)
    await asyncio.wait_for(serving.task, 5)


async def test_the_grace_time_is_kept(make: Any) -> None:
    async def hang(request: Any) -> AsyncIterator[int]:
        yield 1
        await asyncio.Event().wait()

    server = make(grace=0.05)
    serving = Serving(server, hang)
    stream = (await serving.client(make())).generate(None)
    await anext(stream)
    await asyncio.wait_for(server.shutdown(), 5)
    with pytest.raises(EngineShutdown):
        await anext(stream)


async def test_cancelling_serve_endpoint_leaves_discovery(make: Any) -> None:
    serving = Serving(make(), count)
    client = await serving.client(make())
    removed = add_callback(client, "removed")
    serving.task.cancel()
    await asyncio.wait_for(removed, 5)
    with pytest.raises(asyncio.CancelledError):
        await serving.task


async def test_an_instance_can_leave_and_come_back(make: Any) -> None:
    server = make()

    def handler(request: Any, context: Context, sink: Any) -> None:
        sink.end()

    endpoint = server.endpoint("test.backend.generate")
    served = await endpoint.serve(handler)
    client = await make().endpoint("test.backend.generate").client()
    await client.wait_for_instances(5)
    removed = add_callback(client, "removed")
    await served.close()
    await asyncio.wait_for(removed, 5)
    await endpoint.serve(handler, events=True)
    assert await client.wait_for_instances(5) == [server.instance_id]
    assert client.instances()[0].events == await server.event_plane.address()


SERVER = """
import asyncio, sys
from dynamo_core.runtime import DistributedRuntime

async def handler(request):
    yield "begun"
    await asyncio.Event().wait()

async def main():
    runtime = DistributedRuntime(file_kv=sys.argv[1], event_plane="inproc")
    await runtime.start()
    print(runtime.instance_id, flush=True)
    await runtime.endpoint("test.backend.generate").serve_endpoint(handler)

asyncio.run(main())
"""


async def start_server(folder: str) -> tuple[asyncio.subprocess.Process, int]:
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", SERVER, folder, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    return process, int(await process.stdout.readline())


async def test_a_killed_worker_is_withdrawn_before_its_streams_fail(make: Any, tmp_path: Path) -> None:
    process, instance_id = await start_server(str(tmp_path / "kv"))
    client = await make().endpoint("test.backend.generate").client()
    assert await client.wait_for_instances(10) == [instance_id]
    stream = client.generate(None, annotated=False)
    assert await anext(stream) == "begun"
    at_failure: list[list[int]] = []
    receiver_errors = asyncio.Event()

    class Receiver:
        def on_items(self, items: list[Any]) -> None:
            pass

        def on_end(self) -> None:
            pass

        def on_error(self, error: Exception) -> None:
            at_failure.append(client.instance_ids())
            receiver_errors.set()

    client.open(instance_id, None, Context(), Receiver())
    process.send_signal(signal.SIGKILL)
    with pytest.raises(Disconnected):
        await asyncio.wait_for(anext(stream), 5)
    await asyncio.wait_for(receiver_errors.wait(), 5)
    assert at_failure == [[]]
    await process.wait()
    replacement, replacement_id = await start_server(str(tmp_path / "kv"))
    assert await client.wait_for_instances(10) == [replacement_id]
    replacement.send_signal(signal.SIGKILL)
    await replacement.wait()


async def test_a_killed_idle_worker_is_noticed_without_a_request(make: Any, tmp_path: Path) -> None:
    process, instance_id = await start_server(str(tmp_path / "kv"))
    client = await make().endpoint("test.backend.generate").client()
    await client.wait_for_instances(10)
    removed = add_callback(client, "removed")
    process.send_signal(signal.SIGKILL)
    assert await asyncio.wait_for(removed, 5) == instance_id
    await process.wait()


async def test_an_instance_whose_connection_broke_comes_back_when_it_answers(make: Any) -> None:
    server = make()
    client = await Serving(server, count).client(make())
    removed = add_callback(client, "removed")
    assert [item async for item in client.generate(1, False)] == [0]
    for connection in tuple(server.request_plane._accepted):
        connection.abort()
    assert await asyncio.wait_for(removed, 5) == server.instance_id
    assert await client.wait_for_instances(5) == [server.instance_id]
    assert [item async for item in client.generate(1, False)] == [0]


async def test_records_that_are_broken_or_of_another_plane_are_ignored(make: Any, caplog: pytest.LogCaptureFixture) -> None:
    caller = make()
    await caller.start()
    other = Instance(instance_id=5, namespace="test", component="backend", endpoint="generate", address="x", request_plane="nats")
    await caller.discovery.put("instances/test/backend/generate/5", msgspec.json.encode(other))
    await caller.discovery.put("instances/test/backend/generate/6", b"{")
    client = await caller.endpoint("test.backend.generate").client()
    assert client.instance_ids() == []
    assert len(caplog.records) == 2


# --- construction ------------------------------------------------------------------------------------------------------------


def test_the_constructor_does_no_work_and_needs_no_loop(tmp_path: Path) -> None:
    runtime = DistributedRuntime(None, "file", False, file_kv=str(tmp_path / "kv"))
    assert 0 < runtime.instance_id < 1 << 53
    assert runtime.request_plane_name == "tcp"
    assert not (tmp_path / "kv").exists()


async def test_a_backend_that_nobody_provides_names_the_nearest(make: Any) -> None:
    with pytest.raises(PluginError, match="file"):
        await DistributedRuntime(None, "filo").start()


async def test_what_no_plugin_blocks_is_not_brought_in_by_a_setting() -> None:
    with pytest.raises(PluginError, match="--no-plugin inproc"):
        await DistributedRuntime(None, "mem", "inproc", compiled=activate((), blocked=("inproc",))).start()
    async with DistributedRuntime(None, "mem", "inproc", event_plane="inproc", compiled=activate(("mem",))) as runtime:
        assert runtime.stores()["request_plane"].provider == "inproc"


async def test_runtimes_of_one_process_share_a_table_and_a_hub() -> None:
    table, hub = Table(), InprocHub()
    runtimes = []
    for number in (1, 2):
        context = PlaneContext(namespace="x", run_dir="", instance_id=number)
        plane, events = InprocPlane(context, hub), InprocEvents(context, hub)
        runtimes.append(DistributedRuntime(None, MemDiscovery(table), plane, event_plane=events))
        runtimes[-1].instance_id = number
    client = await Serving(runtimes[0], count).client(runtimes[1])
    assert [item async for item in client.generate(2, False)] == [0, 1]
    for runtime in runtimes:
        await runtime.shutdown()


async def test_one_runtime_without_files_or_sockets() -> None:
    async with DistributedRuntime(None, "mem", "inproc", event_plane="inproc") as runtime:
        client = await Serving(runtime, count).client(runtime)
        assert [item async for item in client.generate(2, False)] == [0, 1]


async def test_shutdown_removes_what_was_made(make: Any, tmp_path: Path) -> None:
    runtime = make(event_plane="zmq")
    Serving(runtime, count)
    await runtime.start()
    run_dir = Path(runtime.request_plane._run_dir)
    assert run_dir.is_dir()
    assert (await runtime.event_plane.address()).startswith("ipc://")
    await runtime.shutdown()
    assert not run_dir.exists()
    assert list((tmp_path / "kv").iterdir()) == []
