import asyncio
import contextlib
import socket

import pytest

from dynamo_core.errors import InvalidRequest, ServiceUnavailable
from dynamo_core.supervisor.channel import Channel


@pytest.fixture
async def pair():
    """Two ends; `make(**options)` gives a channel over the one, the other is a plain stream pair."""
    async with contextlib.AsyncExitStack() as stack:
        ours, theirs = socket.socketpair()
        reader, writer = await asyncio.open_unix_connection(sock=theirs)
        stack.callback(writer.close)

        async def make(**options):
            channel = Channel(*await asyncio.open_unix_connection(sock=ours), **options)
            task = asyncio.create_task(channel.run())
            stack.callback(task.cancel)
            return channel, task

        yield make, reader, writer


async def test_a_question_gets_the_answer_of_its_id(pair):
    make, reader, writer = pair
    channel, _ = await make()
    first = asyncio.create_task(channel.ask("a", within=5))
    second = asyncio.create_task(channel.ask("b", {"x": 1}, within=5))
    assert b'"name":"a"' in await reader.readline()
    assert await reader.readline() == b'{"name":"b","id":2,"data":{"x":1}}\n'
    writer.write(b'{"id":2,"data":{"n":2}}\n{"id":1,"data":{"n":1}}\n')
    assert await first == {"n": 1}
    assert await second == {"n": 2}


async def test_questions_are_answered_and_errors_told(pair):
    make, reader, writer = pair

    async def answer(name, data):
        if name == "good":
            return {"echo": data}
        if name == "bad":
            raise InvalidRequest("No.")
        raise ValueError("a secret")

    await make(answer=answer)
    writer.write(b'{"name":"good","id":1,"data":{"a":1}}\n')
    assert await reader.readline() == b'{"id":1,"data":{"echo":{"a":1}}}\n'
    writer.write(b'{"name":"bad","id":2}\n')
    assert await reader.readline() == b'{"id":2,"error":"No."}\n'
    writer.write(b'{"name":"ugly","id":3}\n')
    assert b"secret" not in await reader.readline()


async def test_events_arrive_in_order(pair):
    make, _, writer = pair
    seen: asyncio.Queue = asyncio.Queue()
    await make(on_event=lambda name, data: seen.put_nowait((name, data)))
    writer.write(b'{"name":"stage","data":{"text":"x"}}\n{"name":"ready"}\n')
    assert await seen.get() == ("stage", {"text": "x"})
    assert await seen.get() == ("ready", {})


async def test_an_end_that_goes_away_fails_what_waits(pair):
    make, reader, writer = pair
    channel, task = await make()
    asking = asyncio.create_task(channel.ask("a", within=5))
    await reader.readline()
    writer.close()
    with pytest.raises(ServiceUnavailable, match="ended before it answered"):
        await asking
    await task


async def test_no_answer_in_time_is_an_error(pair):
    make, _, _ = pair
    channel, _ = await make()
    with pytest.raises(ServiceUnavailable, match=r"No answer to 'a' within 0.01 s"):
        await channel.ask("a", within=0.01)


async def test_garbage_ends_the_channel_with_a_log_line(pair, caplog):
    make, reader, writer = pair
    _, task = await make()
    writer.write(b"what?\n")
    await task
    assert await reader.read() == b""
    assert "control channel closed" in caplog.text
