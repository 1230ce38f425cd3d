"""A whole runtime over etcd and NATS, as processes of many hosts use it."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dynamo_core.contracts import Context
from dynamo_core.errors import DynamoError, NoInstances, StartupError
from dynamo_core.plugins import Compiled, activate
from dynamo_core.runtime import DistributedRuntime
from dynamo_core.testing.provision import required_module, required_server
from dynamo_core.testing.servers import EtcdServer, free_port

required_module("dynamo_etcd")
required_module("dynamo_nats")

WORKER = """
import asyncio, os, sys
from dynamo_core.plugins import activate
from dynamo_core.runtime import DistributedRuntime

async def generate(request, context):
    for number in range(request):
        yield [os.getpid(), number]
        await asyncio.sleep(0.01)

async def main():
    etcd, nats = sys.argv[1:]
    tables = {"etcd": {"endpoints": [etcd], "lease_ttl_secs": 2}, "nats": {"servers": [nats]}}
    runtime = DistributedRuntime(None, "etcd", "nats", event_plane="nats", compiled=activate(["etcd", "nats"], tables=tables))
    await runtime.endpoint("n.c.e").serve_endpoint(generate)

asyncio.run(main())
"""


@pytest.fixture
def own_etcd(tmp_path: Path) -> Iterator[EtcdServer]:
    """One that the test may stop."""
    server = EtcdServer(required_server("etcd"), tmp_path / "etcd")
    server.start()
    yield server
    server.stop()


@pytest.fixture
async def runtime(own_etcd: EtcdServer, nats: str) -> AsyncIterator[Callable[[], DistributedRuntime]]:
    made: list[DistributedRuntime] = []

    def plugins() -> Compiled:
        tables = {"etcd": {"endpoints": [own_etcd.url], "lease_ttl_secs": 2}, "nats": {"servers": [nats]}}
        return activate(["etcd", "nats"], tables=tables)

    def make() -> DistributedRuntime:
        made.append(DistributedRuntime(None, "etcd", "nats", event_plane="nats", compiled=plugins()))
        return made[-1]

    yield make
    for one in made:
        await one.shutdown()


@contextlib.asynccontextmanager
async def worker(etcd: str, nats: str) -> Any:
    # As the supervisor does it: uvloop would fork and run Python in the child, where gRPC's threads may have left a lock taken.
    process = subprocess.Popen([sys.executable, "-c", WORKER, etcd, nats])  # noqa: ASYNC220
    try:
        yield process
    finally:
        process.kill()
        await asyncio.to_thread(process.wait)


async def count(request: int, context: Context) -> AsyncIterator[int]:
    for number in range(request):
        yield number
        await asyncio.sleep(0)


async def test_processes_find_each_other_and_a_killed_one_is_withdrawn_before_its_lease_lapses(
    own_etcd: EtcdServer, nats: str, runtime: Any
) -> None:
    client = await runtime().endpoint("n.c.e").client()
    withdrawn = asyncio.Event()
    async with worker(own_etcd.url, nats) as one, worker(own_etcd.url, nats):
        async with asyncio.timeout(60):
            while len(client.instance_ids()) < 2:  # noqa: ASYNC110  # other processes' state
                await asyncio.sleep(0.05)
        pids = {instance.pid: instance.instance_id for instance in client.instances()}
        client.on_change(removed=lambda instance_id: withdrawn.set())
        stream = client.direct(1_000_000, pids[one.pid])
        assert (await anext(stream)).data() == [one.pid, 0]
        one.send_signal(signal.SIGKILL)
        with pytest.raises(DynamoError):
            async for _ in stream:
                pass
        await asyncio.wait_for(withdrawn.wait(), 2)
        for _ in range(4):
            answers = [item.data() async for item in client.round_robin(2)]
            assert len(answers) == 2
            assert answers[0][0] != one.pid


async def test_an_outage_of_etcd_changes_nothing_for_running_and_new_requests(own_etcd: EtcdServer, runtime: Any) -> None:
    server, caller = runtime(), runtime()
    serving = asyncio.create_task(server.endpoint("n.c.e").serve_endpoint(count))
    client = await caller.endpoint("n.c.e").client()
    await client.wait_for_instances(10)
    removed = []
    client.on_change(removed=removed.append)

    async def ask() -> None:
        assert [item.data() async for item in client.round_robin(100)] == list(range(100))

    await ask()
    own_etcd.kill()
    shutil.rmtree(own_etcd.data)
    for _ in range(30):  # longer than the leases live
        await ask()
        await asyncio.sleep(0.1)
    await asyncio.to_thread(own_etcd.start)
    for _ in range(40):
        await ask()
        await asyncio.sleep(0.1)
    assert removed == []
    late = await runtime().endpoint("n.c.e").client()
    assert await late.wait_for_instances(10) == [server.instance_id]
    await server.shutdown()
    await serving
    async with asyncio.timeout(10):
        while late.instance_ids():  # noqa: ASYNC110  # another store's state
            await asyncio.sleep(0.05)


async def test_events_of_one_process_reach_another(runtime: Any) -> None:
    one, two = runtime(), runtime()
    await one.start()
    await two.start()
    arrived = asyncio.Event()
    two.event_plane.subscribe(await one.event_plane.address(), "kv", lambda payload: arrived.set())
    async with asyncio.timeout(10):
        while not arrived.is_set():
            one.event_plane.publish("kv", b"x")
            await asyncio.sleep(0.01)


async def test_nobody_serves_is_said_after_the_wait(runtime: Any) -> None:
    client = await runtime().endpoint("n.c.e").client()
    with pytest.raises(NoInstances, match=r"n\.c\.e"):
        await client.wait_for_instances(0.1)


async def test_a_wrong_address_of_etcd_is_one_sentence_and_leaves_nothing_open() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    compiled = activate(["etcd"], tables={"etcd": {"endpoints": [url], "connect_timeout_secs": 0.2}})
    runtime = DistributedRuntime(None, "etcd", "tcp", compiled=compiled)
    with pytest.raises(StartupError, match=url):
        await runtime.start()
