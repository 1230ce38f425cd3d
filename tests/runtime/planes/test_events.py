"""Event planes: every payload in order, and losses that are told."""

from __future__ import annotations

import asyncio
import socket
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from dynamo_core.errors import StartupError
from dynamo_core.runtime.planes.inproc import InprocEvents, InprocHub
from dynamo_core.runtime.planes.streams import RequestPlaneEvents
from dynamo_core.runtime.planes.tcp import TcpConfig, TcpPlane
from dynamo_core.runtime.planes.zmq import ZmqConfig, ZmqEvents, dynamo_event_planes
from dynamo_core.specs import PlaneContext
from dynamo_core.testing.provision import required_module


class Inbox:
    def __init__(self) -> None:
        self.payloads: list[bytes] = []
        self.lost = 0
        self._arrived = asyncio.Event()

    def receive(self, payload: bytes) -> None:
        self.payloads.append(payload)
        self._arrived.set()

    def on_lost(self) -> None:
        self.lost += 1

    async def until(self, payload: bytes) -> None:
        async with asyncio.timeout(10):
            while payload not in self.payloads:
                self._arrived.clear()
                await self._arrived.wait()


@pytest.fixture(params=["inproc", "ipc", "tcp", "nats", "streams", "streams of nats"])
async def planes(request: pytest.FixtureRequest, folder: str) -> AsyncIterator[Any]:
    hub = InprocHub()
    beneath = []

    def make(number: int) -> Any:
        context = PlaneContext(namespace="test", run_dir=folder, instance_id=number)
        if request.param == "inproc":
            return InprocEvents(context, hub)
        if request.param == "nats":
            events = required_module("dynamo_nats.events")
            options = required_module("dynamo_nats").NatsConfig(servers=(request.getfixturevalue("nats"),))
            return events.NatsEvents(options, context)
        if request.param == "streams":
            beneath.append(TcpPlane(TcpConfig(), context))
            return RequestPlaneEvents(beneath[-1], number)
        if request.param == "streams of nats":
            requests, options = required_module("dynamo_nats.requests"), required_module("dynamo_nats")
            beneath.append(requests.NatsRequests(options.NatsConfig(servers=(request.getfixturevalue("nats"),)), context))
            return RequestPlaneEvents(beneath[-1], number)
        return ZmqEvents(ZmqConfig(host="127.0.0.1") if request.param == "tcp" else ZmqConfig(), context)

    one, two = make(1), make(2)
    await two.start()
    await one.start()
    yield one, await one.address(), two
    await two.close()
    await one.close()
    for plane in beneath:
        await plane.close()


async def subscribed(publisher: Any, subscriber: Any, address: str, topic: str = "kv") -> tuple[Inbox, Any]:
    """Subscribe and publish until the first payload arrives: there is no memory, and connecting takes a moment."""
    inbox = Inbox()
    subscription = subscriber.subscribe(address, topic, inbox.receive, inbox.on_lost)
    async with asyncio.timeout(10):
        while not inbox.payloads:
            publisher.publish(topic, b"hello")
            await asyncio.sleep(0.01)
    publisher.publish(topic, b"begin")
    await inbox.until(b"begin")
    inbox.payloads.clear()
    inbox.lost = 0
    return inbox, subscription


async def test_payloads_arrive_in_order_and_by_topic(planes: Any) -> None:
    one, address, two = planes
    kv, _ = await subscribed(one, two, address, "kv")
    load, _ = await subscribed(one, two, address, "kvload")
    for number in range(3000):
        one.publish("kv", b"%d" % number)
        one.publish("kvload", b"load %d" % number)
        one.publish("nobody", b"x")
        if number % 500 == 0:
            await asyncio.sleep(0)
    await kv.until(b"2999")
    await load.until(b"load 2999")
    assert kv.payloads == [b"%d" % number for number in range(3000)]
    assert load.payloads == [b"load %d" % number for number in range(3000)]
    assert kv.lost == load.lost == 0


async def test_a_closed_subscription_hears_nothing(planes: Any) -> None:
    one, address, two = planes
    first, subscription = await subscribed(one, two, address)
    second, _ = await subscribed(one, two, address)
    first.payloads.clear()
    subscription.close()
    subscription.close()
    one.publish("kv", b"x")
    await second.until(b"x")
    assert first.payloads == []


async def test_a_subscriber_that_raises_does_not_harm_the_others(planes: Any, caplog: pytest.LogCaptureFixture) -> None:
    one, address, two = planes
    inbox, _ = await subscribed(one, two, address)

    def fail(payload: bytes) -> None:
        raise RuntimeError("a subscriber's bug")

    two.subscribe(address, "kv", fail)
    sent = 0
    async with asyncio.timeout(10):
        while "a subscriber" not in caplog.text:
            one.publish("kv", b"%d" % sent)
            sent += 1
            await asyncio.sleep(0.01)
    one.publish("kv", b"last")
    await inbox.until(b"last")
    assert inbox.payloads == [*(b"%d" % number for number in range(sent)), b"last"]


async def test_a_process_may_subscribe_to_itself(planes: Any) -> None:
    one, address, _ = planes
    await subscribed(one, one, address)


async def test_what_was_published_before_the_subscription_is_told_as_lost(folder: str) -> None:
    one, two = (ZmqEvents(ZmqConfig(), PlaneContext(namespace="test", run_dir=folder, instance_id=number)) for number in (1, 2))
    await one.start()
    address = await one.address()
    await two.start()
    one.publish("kv", b"early")
    inbox = Inbox()
    two.subscribe(address, "kv", inbox.receive, inbox.on_lost)
    async with asyncio.timeout(10):
        while not inbox.payloads:
            one.publish("kv", b"late")
            await asyncio.sleep(0.01)
    assert inbox.lost == 1
    one._counts["kv"] += 3
    one.publish("kv", b"after a gap")
    await inbox.until(b"after a gap")
    assert inbox.lost == 2
    await two.close()
    await one.close()


async def test_a_restarted_publisher_is_told_as_lost(folder: str) -> None:
    def make(number: int, port: int | None = None) -> ZmqEvents:
        config = ZmqConfig(host="127.0.0.1", port=port)
        return ZmqEvents(config, PlaneContext(namespace="test", run_dir=folder, instance_id=number))

    one, two = make(1), make(2)
    await one.start()
    address = await one.address()
    await two.start()
    inbox, _ = await subscribed(one, two, address)
    await one.close()
    again = make(3, int(address.rpartition(":")[2]))
    await again.start()
    async with asyncio.timeout(10):
        while not inbox.payloads:
            again.publish("kv", b"again")
            await asyncio.sleep(0.01)
    assert inbox.lost == 1
    await two.close()
    await again.close()


async def test_the_ipc_file_is_private_and_removed(folder: str) -> None:
    plane = ZmqEvents(ZmqConfig(), PlaneContext(namespace="test", run_dir=folder, instance_id=1))
    await plane.start()
    path = Path((await plane.address()).removeprefix("ipc://"))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    await plane.close()
    assert not path.exists()


async def test_a_long_run_folder_still_works(tmp_path: Path) -> None:
    plane = ZmqEvents(ZmqConfig(), PlaneContext(namespace="test", run_dir=str(tmp_path / ("x" * 120)), instance_id=1))
    await plane.start()
    assert (await plane.address()).startswith("ipc://")
    await plane.close()


async def test_a_folder_or_port_that_cannot_be_used_is_one_sentence(folder: str) -> None:
    context = PlaneContext(namespace="test", run_dir=f"{folder}/missing", instance_id=1)
    with pytest.raises(StartupError, match="DYN_RUN_DIR"):
        await (broken := ZmqEvents(ZmqConfig(), context)).start()
    await broken.close()


async def test_a_wildcard_is_published_as_something_that_others_can_dial(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    context = PlaneContext(namespace="test", run_dir=folder, instance_id=1)
    plane = ZmqEvents(ZmqConfig(host="0.0.0.0"), context)
    await plane.start()
    address = await plane.address()
    await plane.close()
    assert address.startswith(f"tcp://{socket.gethostname()}:")
    (spec,) = dynamo_event_planes()
    monkeypatch.setenv("DYN_ZMQ_EVENT_HOST", "127.0.0.1")
    monkeypatch.setenv("DYN_ZMQ_EVENT_ADVERTISE", "10.0.0.7:9")
    plane = spec.factory(None, context)
    await plane.start()
    assert await plane.address() == "tcp://10.0.0.7:9"
    await plane.close()
    monkeypatch.setenv("DYN_ZMQ_EVENT_PORT", "many")
    with pytest.raises(StartupError, match="DYN_ZMQ_EVENT_PORT"):
        spec.factory(None, context)
