"""What is said of servers that are out of reach, and of a discovery that does not answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from types import SimpleNamespace

import pytest

from dynamo_core.contracts import DiscoveryEvent
from dynamo_core.errors import CannotConnect
from dynamo_core.runtime import DistributedRuntime
from dynamo_core.runtime.discovery.mem import MemDiscovery
from dynamo_core.runtime.stores import state_of


def test_a_part_without_a_server_is_up() -> None:
    assert state_of("file", object()).state == "up"


def test_an_outage_has_a_length() -> None:
    told = state_of("etcd", SimpleNamespace(out_since=time.monotonic() - 5))
    assert (told.provider, told.state) == ("etcd", "out of reach")
    assert told.seconds == pytest.approx(5, abs=1)


async def test_a_runtime_tells_of_its_parts_and_counts_outages() -> None:
    async with DistributedRuntime(None, "mem", "inproc", event_plane="inproc") as runtime:
        assert {part: (told.provider, told.state) for part, told in runtime.stores().items()} == {
            "discovery": ("mem", "up"),
            "request_plane": ("inproc", "up"),
            "event_plane": ("inproc", "up"),
        }
        assert b'dynamo_component_store_out_of_reach{part="discovery",provider="mem"} 0.0' in runtime.metrics.text()


class Silent(MemDiscovery):
    """Cannot say what there is until it is told to."""

    speaks = False

    async def watch(self, prefix: str) -> AsyncIterator[DiscoveryEvent]:
        if not self.speaks:
            raise CannotConnect("store at test:1 does not list")
        async for event in super().watch(prefix):
            yield event


async def test_a_client_of_a_discovery_that_does_not_tell_gets_a_typed_error_with_the_address() -> None:
    discovery = Silent()
    async with DistributedRuntime(None, discovery, "inproc", event_plane="inproc") as runtime:
        with pytest.raises(CannotConnect, match="test:1"):
            await runtime.endpoint("a.b.c").client()
        assert not runtime.clients
        discovery.speaks = True
        async with asyncio.timeout(5):
            client = await runtime.endpoint("a.b.c").client()
        assert client.instance_ids() == []
