"""Head and body of a response in one write, and nothing held back longer than a turn."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from litestar import get
from litestar.response import Stream

from dynamo_core.http.protocol import HeadJoiner
from dynamo_core.specs import HttpSpec


class Transport:
    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.closed = False

    def write(self, data: bytes) -> None:
        assert not self.closed
        self.written.append(data)

    def close(self) -> None:
        self.closed = True


@pytest.fixture
async def joiner() -> Any:
    transport: Any = Transport()
    return HeadJoiner(transport, asyncio.get_running_loop()), transport


async def test_a_head_leaves_with_what_follows_it(joiner: Any) -> None:
    joined, transport = joiner
    for _ in range(2):
        for data in (b"head", b"one", b"two"):
            joined.write(data)
        joined.expect_head()
    await asyncio.sleep(0)
    assert transport.written == [b"headone", b"two"] * 2


async def test_a_head_alone_leaves_when_the_turn_ends(joiner: Any) -> None:
    joined, transport = joiner
    joined.write(b"head")
    assert transport.written == []
    await asyncio.sleep(0)
    assert transport.written == [b"head"]
    joined.write(b"body")
    assert transport.written == [b"head", b"body"]


async def test_an_empty_body_lets_the_head_go(joiner: Any) -> None:
    joined, transport = joiner
    joined.write(b"head")
    joined.write(b"")
    assert transport.written == [b"head"]


async def test_closing_writes_the_head_first(joiner: Any) -> None:
    joined, transport = joiner
    joined.write(b"head")
    joined.close()
    await asyncio.sleep(0)
    assert transport.written == [b"head"]
    assert transport.closed


async def test_the_head_of_a_route_that_streams_later_does_not_wait_for_its_body(serve: Any) -> None:
    go = asyncio.Event()

    @get("/later")
    async def later() -> Stream:
        async def pieces() -> Any:
            await go.wait()
            yield b"body"

        return Stream(pieces())

    running = await serve(compiled={"http": (HttpSpec(name="later", route_handlers=[later]),)})
    reader, _ = await running.raw(b"GET /later HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
    assert head.startswith(b"HTTP/1.1 200")
    go.set()
    assert b"body" in await asyncio.wait_for(reader.read(), 5)


async def test_a_client_that_waits_to_be_told_to_go_on_is_told(serve: Any) -> None:
    running = await serve()
    running.model.script = lambda played: played.say("Hi")
    whole = running.post(
        "/v1/chat/completions", {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}, "Expect: 100-continue"
    )
    head, _, body = whole.partition(b"\r\n\r\n")
    reader, writer = await running.raw(head + b"\r\n\r\n")
    assert b"100 Continue" in await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
    writer.write(body)
    assert b"200 OK" in await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
