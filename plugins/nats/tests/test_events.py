"""What NATS adds to the behaviour of an event plane."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from nats.aio.client import Client

from dynamo_core.specs import PlaneContext
from dynamo_core.testing.servers import NatsServer
from dynamo_nats import NatsConfig
from dynamo_nats.events import NatsEvents


async def lost_nats(*planes: Any) -> None:
    async with asyncio.timeout(10):
        while any(plane._link.up for plane in planes):  # noqa: ASYNC110  # another process's state
            await asyncio.sleep(0.01)


class Inbox:
    def __init__(self) -> None:
        self.payloads: list[bytes] = []
        self.lost = 0
        self._changed = asyncio.Event()

    def receive(self, payload: bytes) -> None:
        self.payloads.append(payload)
        self._changed.set()

    def on_lost(self) -> None:
        self.lost += 1
        self._changed.set()

    async def until(self, payload: bytes | None = None, lost: int = 0) -> None:
        async with asyncio.timeout(10):
            while (payload is not None and payload not in self.payloads) or self.lost < lost:
                self._changed.clear()
                await self._changed.wait()


@pytest.fixture
async def planes(nats: NatsServer) -> AsyncIterator[tuple[NatsEvents, str, NatsEvents]]:
    one, two = (
        NatsEvents(NatsConfig(servers=(nats.url,)), PlaneContext(namespace="n", run_dir="/", instance_id=number))
        for number in (1, 2)
    )
    await two.start()
    await one.start()
    yield one, await one.address(), two
    await one.close()
    await two.close()


async def join(one: NatsEvents, address: str, two: NatsEvents, topic: str = "kv") -> Inbox:
    """A subscription that NATS knows of."""
    inbox = Inbox()
    two.subscribe(address, topic, inbox.receive, inbox.on_lost)
    await asyncio.gather(*two._tasks)
    await two._link._client.flush()  # type: ignore[union-attr]
    return inbox


async def test_a_gap_is_told(planes: Any) -> None:
    one, address, two = planes
    inbox = await join(one, address, two)
    one.publish("kv", b"1")
    await inbox.until(b"1")
    assert inbox.lost == 0
    one.publish("kv", bytes(2 * 1024 * 1024))  # more than NATS takes
    one.publish("kv", b"2")
    await inbox.until(b"2")
    assert inbox.lost == 1


async def test_what_was_published_before_the_subscription_is_told_as_lost(planes: Any) -> None:
    one, address, two = planes
    one.publish("kv", b"early")
    await one._link._empty.wait()
    await one._link._client.flush()
    inbox = await join(one, address, two)
    one.publish("kv", b"late")
    await inbox.until(b"late")
    assert inbox.lost == 1


async def test_an_outage_is_told_as_a_loss_and_events_flow_after_it(nats: NatsServer, planes: Any) -> None:
    one, address, two = planes
    inbox = await join(one, address, two)
    nats.kill()
    await lost_nats(one, two)
    assert one.out_since is not None
    assert time.monotonic() - one.out_since < 5
    one.publish("kv", b"waits")
    await asyncio.to_thread(nats.start)
    await inbox.until(lost=1)
    assert two.out_since is None
    async with asyncio.timeout(10):
        while b"after" not in inbox.payloads:
            one.publish("kv", b"after")
            await asyncio.sleep(0.05)


async def test_the_oldest_events_are_dropped_while_nats_is_away(nats: NatsServer, planes: Any) -> None:
    one, _, _ = planes
    nats.kill()
    await lost_nats(one)
    for _ in range(100):
        one.publish("kv", bytes(512 * 1024))
    assert one._link.queued <= 16 * 1024 * 1024


async def test_topics_with_signs_that_mean_something_to_nats_are_kept_apart(planes: Any) -> None:
    one, address, two = planes
    topics = ["a", "a.b", "*", ">", "ü ", "a%2Eb"]
    inboxes = [await join(one, address, two, topic) for topic in topics]
    for topic in topics:
        one.publish(topic, topic.encode())
    for topic, inbox in zip(topics, inboxes, strict=True):
        await inbox.until(topic.encode())
        assert inbox.payloads == [topic.encode()]


async def test_garbage_is_ignored(nats: NatsServer, planes: Any, caplog: Any) -> None:
    one, address, two = planes
    inbox = await join(one, address, two)
    outsider = Client()
    await outsider.connect(nats.url)
    await outsider.publish(address.removeprefix("nats:") + ".kv", b"x")
    await outsider.close()
    one.publish("kv", b"1")
    await inbox.until(b"1")
    assert inbox.payloads == [b"1"]
    for wrong in ("", "ipc:///tmp/x", "nats:", "nats:a b", "nats:>"):
        with pytest.raises(ValueError):
            two.subscribe(wrong, "kv", inbox.receive)


async def test_a_plane_that_is_not_started_says_so() -> None:
    plane = NatsEvents(NatsConfig(), PlaneContext(namespace="n", run_dir="/", instance_id=1))
    with pytest.raises(RuntimeError):
        plane.publish("kv", b"")
    await plane.close()
