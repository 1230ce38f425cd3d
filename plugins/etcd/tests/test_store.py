"""Leases, outages, compaction and failover, against real servers."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from aetcd.rpc import rpc_pb2, rpc_pb2_grpc

from dynamo_core.contracts import Deleted, Put, Synced
from dynamo_core.errors import CannotConnect
from dynamo_core.testing.servers import etcd_cluster

HOLDER = """
import asyncio, sys
from dynamo_etcd import EtcdConfig
from dynamo_etcd.options import from_environment
from dynamo_etcd.store import EtcdDiscovery

async def main():
    store = EtcdDiscovery(from_environment(EtcdConfig(endpoints=(sys.argv[1],), lease_ttl_secs=2)))
    await store.start()
    await store.put("held", b"x")
    print("ready", flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


@contextlib.asynccontextmanager
async def holder(url: str) -> Any:
    """A process that holds the key ``held``."""
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", HOLDER, url, stdout=asyncio.subprocess.PIPE)
    try:
        assert await process.stdout.readline() == b"ready\n"
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def holds(store: Any, wanted: dict[str, bytes]) -> None:
    """Wait until etcd itself has ``wanted``."""
    async with asyncio.timeout(10):
        while await store.get_prefix("") != wanted:  # noqa: ASYNC110  # another process's state
            await asyncio.sleep(0.05)


async def test_the_keys_of_a_killed_process_disappear_when_its_lease_lapses(etcd: Any, store: Any, follow: Any) -> None:
    one = await store(etcd.url)
    await one.put("mine", b"1")
    async with holder(etcd.url) as process:
        log = await follow(one)
        assert Put("held", b"x") in log.events
        process.send_signal(signal.SIGKILL)
        await log.until(Deleted("held"))
    assert await one.get_prefix("") == {"mine": b"1"}


async def test_a_process_that_stood_still_is_back_when_it_goes_on(etcd: Any, store: Any, follow: Any) -> None:
    async with holder(etcd.url) as process:
        log = await follow(await store(etcd.url))
        process.send_signal(signal.SIGSTOP)
        await log.until(Deleted("held"))
        process.send_signal(signal.SIGCONT)
        await log.until(Put("held", b"x"), 2)


async def test_a_clean_leave_is_told_at_once(etcd: Any, store: Any, follow: Any) -> None:
    one = await store(etcd.url, lease_ttl_secs=3600)
    await one.put("a", b"1")
    log = await follow(await store(etcd.url))
    await one.close()
    await log.until(Deleted("a"), seconds=2)


@pytest.mark.parametrize("wiped", [False, True], ids=["same disk", "empty disk"])
async def test_a_restart_of_etcd_tells_nobody_as_deleted_and_everything_is_put_again(
    etcd: Any, store: Any, follow: Any, wiped: bool
) -> None:
    one, two = await store(etcd.url), await store(etcd.url)
    await one.put("a", b"1")
    await two.put("b", b"2")
    log = await follow(one)
    etcd.kill()
    if wiped:
        shutil.rmtree(etcd.data)
    await asyncio.to_thread(etcd.start)
    await log.until(Synced(), 2)
    await holds(two, {"a": b"1", "b": b"2"})
    await two.put("c", b"3")
    await log.until(Put("c", b"3"))
    await asyncio.wait_for(one._trust.restored(), 10)
    assert not any(isinstance(event, Deleted) for event in log.events)
    await two.close()
    await log.until(Deleted("b"))


async def test_an_etcd_that_stood_still_for_longer_than_the_leases_tells_nobody_as_deleted(
    etcd: Any, store: Any, follow: Any
) -> None:
    one, two = await store(etcd.url), await store(etcd.url)
    await one.put("a", b"1")
    log = await follow(two)
    etcd.signal(signal.SIGSTOP)
    await asyncio.sleep(4)
    etcd.signal(signal.SIGCONT)
    await asyncio.wait_for(one._trust.restored(), 10)
    await asyncio.wait_for(two._trust.restored(), 10)
    await holds(one, {"a": b"1"})
    assert not any(isinstance(event, Deleted) for event in log.events)


async def test_what_vanished_in_an_outage_is_told_as_deleted_once_etcd_is_back_for_a_while(
    etcd: Any, store: Any, follow: Any
) -> None:
    one = await store(etcd.url)
    await one.put("mine", b"1")
    async with holder(etcd.url) as process:
        log = await follow(one)
        etcd.kill()
        process.kill()
        await process.wait()
    shutil.rmtree(etcd.data)
    await asyncio.to_thread(etcd.start)
    await log.until(Deleted("held"))
    assert Deleted("mine") not in log.events


async def test_what_is_put_and_deleted_during_an_outage_counts_after_it(etcd: Any, store: Any, follow: Any) -> None:
    one, two = await store(etcd.url), await store(etcd.url)
    await one.put("a", b"1")
    await two.put("of the other", b"x")
    log = await follow(two)
    etcd.kill()
    await one.put("b", b"2")
    await one.delete("a")
    await one.delete("of the other")
    await two.delete("nothing")
    assert await two.get_prefix("a") == {"a": b"1"}, "the last known state"
    with pytest.raises(CannotConnect, match=etcd.url):
        await one.get_prefix("a")
    await asyncio.to_thread(etcd.start)
    await log.until(Put("b", b"2"))
    await log.until(Deleted("a"))


async def test_a_watch_that_begins_in_an_outage_waits_for_etcd(etcd: Any, store: Any, follow: Any) -> None:
    one = await store(etcd.url)
    await one.put("a", b"1")
    etcd.kill()
    watch = asyncio.create_task(follow(one))
    await asyncio.sleep(0.5)
    assert not watch.done()
    await asyncio.to_thread(etcd.start)
    log = await watch
    await log.until(Put("a", b"1"))


async def test_a_watch_that_begins_in_an_outage_gives_up_with_the_address(etcd: Any, store: Any, follow: Any) -> None:
    one = await store(etcd.url, connect_timeout_secs=1)
    etcd.kill()
    with pytest.raises(CannotConnect, match=rf"etcd at {etcd.url} does not list dynamo/instances/ within 1 s \(.+\)"):
        await asyncio.wait_for(anext(one.watch("instances/")), 10)
    assert not one._feeds


async def test_an_outage_is_told_while_it_lasts(etcd: Any, store: Any, follow: Any) -> None:
    one = await store(etcd.url)
    await follow(one)
    assert one.out_since is None
    etcd.kill()
    async with asyncio.timeout(10):
        while one.out_since is None:  # noqa: ASYNC110  # the store's own state
            await asyncio.sleep(0.02)
    assert time.monotonic() - one.out_since < 2
    await asyncio.to_thread(etcd.start)
    await asyncio.wait_for(one._trust.restored(), 10)
    assert one.out_since is None


async def test_a_compaction_ahead_of_the_watch_makes_it_list_again(etcd: Any, store: Any, follow: Any, caplog: Any) -> None:
    one, two = await store(etcd.url), await store(etcd.url)
    for number in range(20):
        await one.put("a", b"%d" % number)
    async with grpc.aio.insecure_channel(etcd.url.removeprefix("http://")) as channel:
        kv: Any = rpc_pb2_grpc.KVStub(channel)
        now = (await kv.Range(rpc_pb2.RangeRequest(key=b"x"))).header.revision
        await kv.Compact(rpc_pb2.CompactionRequest(revision=now))
    caplog.set_level("DEBUG", "dynamo_etcd")
    log = await follow(two)
    (feed,) = two._feeds.values()
    whole = feed._list
    revisions = iter((1, None))  # as if the compaction had passed us between the list and the watch

    async def late() -> int:
        revision = await whole()
        return next(revisions, None) or revision

    feed._list = late
    feed._task.cancel()
    feed._task = asyncio.create_task(feed._run())
    await log.until(Synced(), 3)
    assert "compact" in caplog.text
    await one.put("b", b"2")
    await log.until(Put("b", b"2"))
    assert not any(isinstance(event, Deleted) for event in log.events)


async def test_a_lease_that_somebody_revoked_is_replaced(etcd: Any, store: Any, follow: Any) -> None:
    one, two = await store(etcd.url), await store(etcd.url)
    await one.put("a", b"1")
    log = await follow(two)
    await two._revoke(one._lease)
    await log.until(Deleted("a"))
    await one.put("b", b"2")
    await log.until(Put("a", b"1"), 2)
    await log.until(Put("b", b"2"))


async def test_the_next_address_serves_when_a_member_of_the_cluster_dies(
    etcd_program: str, tmp_path: Path, store: Any, follow: Any
) -> None:
    servers = etcd_cluster(etcd_program, tmp_path, 3)
    try:
        for server in servers:
            server.launch()
        for server in servers:
            await asyncio.to_thread(server.wait)
        urls = [server.url for server in servers]
        one, two = await store(*urls), await store(*urls)
        await one.put("a", b"1")
        log = await follow(two)
        servers[0].kill()
        await one.put("b", b"2")
        await log.until(Put("b", b"2"))
        await asyncio.wait_for(two._trust.restored(), 20)
        assert await two.get_prefix("") == {"a": b"1", "b": b"2"}
        assert not any(isinstance(event, Deleted) for event in log.events)
        await one.delete("a")
        await log.until(Deleted("a"))
    finally:
        for server in servers:
            server.kill()


async def test_keys_of_others_and_keys_that_are_no_text_do_no_harm(etcd: Any, store: Any, follow: Any, caplog: Any) -> None:
    one = await store(etcd.url)
    async with grpc.aio.insecure_channel(etcd.url.removeprefix("http://")) as channel:
        kv: Any = rpc_pb2_grpc.KVStub(channel)
        for key in (b"dynamo/\xff\xfe", b"dynamo0", b"other", b"dynamo/text"):
            await kv.Put(rpc_pb2.PutRequest(key=key, value=b"\x00garbage"))
    log = await follow(one)
    assert log.events == [Put("text", b"\x00garbage"), Synced()]
    assert "is ignored" in caplog.text


async def test_deployments_with_different_prefixes_do_not_see_each_other(etcd: Any, store: Any) -> None:
    one, two = await store(etcd.url, prefix="one/"), await store(etcd.url, prefix="two/")
    await one.put("a", b"1")
    assert await two.get_prefix("") == {}


async def test_values_that_do_not_fit_are_refused_and_a_mebibyte_fits(etcd: Any, store: Any) -> None:
    one = await store(etcd.url)
    with pytest.raises(ValueError):
        await one.put("a", bytes(1024 * 1024 + 1))
    with pytest.raises(ValueError):
        await one.put("", b"")
    for number in range(6):
        await one.put(f"card/{number}", bytes(1024 * 1024))
    assert len(await one.get_prefix("card/")) == 6


async def test_nothing_is_left_running_after_a_watch_and_after_closing(etcd: Any, store: Any, follow: Any) -> None:
    before = asyncio.all_tasks()
    one = await store(etcd.url)
    log = await follow(one, "a/")
    again = await follow(one, "a/")
    assert len(one._feeds) == 1
    for watch in (log, again):
        watch.task.cancel()
        await asyncio.gather(watch.task, return_exceptions=True)
    assert not one._feeds
    await one.close()
    left = {task for task in asyncio.all_tasks() - before if "dynamo_etcd" in repr(task)}
    assert not left
    with pytest.raises(RuntimeError):
        await one.put("a", b"")
