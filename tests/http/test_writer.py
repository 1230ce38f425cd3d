"""Stepping ``send`` and ``receive`` by hand, against servers that suspend, yield and raise."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from dynamo_core.http.writer import DirectWriter, ReceiveWatch


class Server:
    """Its ``send`` waits while ``gate`` is closed."""

    def __init__(self) -> None:
        self.sent: list[dict[str, Any]] = []
        self.open = asyncio.Event()
        self.open.set()
        self.error: Exception | None = None

    async def send(self, message: dict[str, Any]) -> None:
        await asyncio.sleep(0) if self.error is None and len(self.sent) == 100 else None
        await self.open.wait()
        if self.error is not None:
            raise self.error
        self.sent.append(message)

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent)


def writer_of(server: Server, on_broken: Any = lambda: None) -> DirectWriter:
    exchange: Any = SimpleNamespace(send=server.send, id="abc", status=0, own_headers=lambda: [(b"x-request-id", b"abc")])
    return DirectWriter(exchange, on_broken)


def ended() -> asyncio.Future[None]:
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    done.set_result(None)
    return done


async def test_what_the_server_takes_is_written_before_the_call_returns() -> None:
    server = Server()
    writer = writer_of(server)
    writer.start(((b"a", b"b"),))
    writer.write(b"one")
    writer.end(b"two")
    assert [message.get("more_body") for message in server.sent] == [None, True, False]
    assert server.sent[0]["headers"] == [(b"a", b"b"), (b"x-request-id", b"abc")]
    await writer.serve(ended())


async def test_what_it_does_not_take_is_held_in_order_and_joined() -> None:
    server = Server()
    writer = writer_of(server)
    calls: list[str] = []
    writer.on_pause, writer.on_resume = lambda: calls.append("pause"), lambda: calls.append("resume")
    writer.start(())
    server.open.clear()
    writer.write(b"1")
    for part in (b"2", b"3"):
        writer.write(part)
    writer.end(b"4")
    assert calls == ["pause"]
    assert server.body == b""
    serving = asyncio.create_task(writer.serve(ended()))
    await asyncio.sleep(0)
    assert not serving.done()
    server.open.set()
    await serving
    assert [message.get("body") for message in server.sent[1:]] == [b"1", b"234"]
    assert server.sent[-1]["more_body"] is False
    assert calls == ["pause", "resume"]


async def test_a_send_that_yields_nothing_in_particular_goes_on_in_the_next_turn() -> None:
    server = Server()
    writer = writer_of(server)
    writer.start(())
    for _ in range(99):
        writer.write(b"x")
    writer.end(b"y")
    await writer.serve(ended())
    assert server.body == b"x" * 99 + b"y"


@pytest.mark.parametrize("waiting", [False, True])
async def test_a_send_that_raises_breaks_the_response_alone(waiting: bool, caplog: pytest.LogCaptureFixture) -> None:
    server = Server()
    broken = asyncio.Event()
    writer = writer_of(server, broken.set)
    writer.start(())
    if waiting:
        server.open.clear()
        writer.write(b"0")
    server.error = RuntimeError("no")
    server.open.set()
    writer.write(b"1")
    await broken.wait()
    writer.write(b"2")
    writer.end(b"3")
    await writer.serve(ended())
    assert server.body == b""
    assert "request abc" in caplog.text


async def test_a_watch_reads_past_the_body_to_the_disconnect() -> None:
    queue: asyncio.Queue[Any] = asyncio.Queue()
    left = asyncio.Event()
    watch = ReceiveWatch(queue.get, left.set)
    queue.put_nowait({"type": "http.request", "body": b"", "more_body": False})
    await asyncio.sleep(0)
    assert not left.is_set()
    queue.put_nowait({"type": "http.disconnect"})
    await left.wait()
    watch.close()


async def test_a_closed_watch_says_nothing() -> None:
    queue: asyncio.Queue[Any] = asyncio.Queue()
    left = asyncio.Event()
    ReceiveWatch(queue.get, left.set).close()
    queue.put_nowait({"type": "http.disconnect"})
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not left.is_set()
