"""What happens to a response when its client is slow, leaves, or the server ends. Raw sockets, so that nothing is hidden."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest
from litestar.enums import ScopeType
from litestar.types import ASGIApp, Receive, Scope, Send

from dynamo_core.http import reply
from dynamo_core.specs import HttpSpec

BODY = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}


def passing_middleware(app: ASGIApp) -> ASGIApp:
    """With it, the response's task awaits ``send``."""

    async def middleware(scope: Scope, receive: Receive, send: Send) -> None:
        async def passing(message: Any) -> None:
            await asyncio.sleep(0)  # something that needs a task
            await send(message)

        await app(scope, receive, passing if scope["type"] == ScopeType.HTTP else send)

    return middleware


@pytest.fixture(params=["direct", "task"])
async def running(serve: Any, request: pytest.FixtureRequest) -> Any:
    specs = (HttpSpec(name="passing", middleware=[passing_middleware]),) if request.param == "task" else ()
    return await serve(compiled={"http": specs})


async def killed(played: Any) -> None:
    if not played.context.is_stopped():
        await played.context.async_killed_or_stopped()
    assert played.context.is_killed()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("begun", [False, True])
async def test_a_client_that_leaves_kills_its_generation(running: Any, stream: bool, begun: bool) -> None:
    reader, writer = await running.raw(running.post("/v1/chat/completions", {**BODY, "stream": stream}))
    played = await running.model.generations.get()
    if begun:
        played.text("a")
        played.flush()
    if begun and stream:
        await reader.readuntil(b'"a"')
    writer.transport.abort()
    await killed(played)
    summary = await running.summaries.get()
    assert (summary.status, summary.outcome, summary.error, summary.stream) == (499, "cancelled", "cancelled", stream)
    assert summary.prompt_tokens == len("<user>Hi")
    assert running.summaries.empty()


@pytest.fixture(params=["direct", "task"])
async def patient(serve: Any, request: pytest.FixtureRequest) -> Any:
    specs = (HttpSpec(name="passing", middleware=[passing_middleware]),) if request.param == "task" else ()
    return await serve(compiled={"http": specs}, cancellation_policy="stop")


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_stops_its_generation_where_the_policy_says_so(patient: Any, stream: bool) -> None:
    _, writer = await patient.raw(patient.post("/v1/chat/completions", {**BODY, "stream": stream}))
    played = await patient.model.generations.get()
    played.text("a")
    played.flush()
    writer.transport.abort()
    await played.context.async_killed_or_stopped()
    assert not played.context.is_killed()
    assert patient.summaries.empty()
    played.text("b")  # the step that ran
    played.flush()
    played.finish("cancelled")
    played.complete()
    summary = await patient.summaries.get()
    assert (summary.status, summary.outcome, summary.output_tokens) == (499, "cancelled", 2)
    assert not played.context.is_killed()


async def test_an_engine_that_does_not_stop_is_killed(patient: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reply, "_LAST_STEP_SECONDS", 0.05)
    _, writer = await patient.raw(patient.post("/v1/chat/completions", {**BODY, "stream": True}))
    played = await patient.model.generations.get()
    writer.transport.abort()
    summary = await patient.summaries.get()
    assert (summary.status, summary.outcome) == (499, "cancelled")
    assert played.context.is_killed()


async def test_a_client_that_leaves_while_sending_its_body_is_no_error(running: Any, caplog: pytest.LogCaptureFixture) -> None:
    request = running.post("/v1/chat/completions", BODY)
    _, writer = await running.raw(request[:-10])
    await writer.drain()
    assert (await running.http.get("/live")).status_code == 200  # by now the server has the rest
    writer.transport.abort()
    summary = await running.summaries.get()
    assert (summary.status, summary.outcome) == (499, "cancelled")
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


async def test_a_connection_is_used_again(running: Any) -> None:
    running.model.script = lambda played: played.say("x")
    request = running.post("/v1/chat/completions", {**BODY, "stream": True})
    reader, writer = await running.raw(request)
    for _ in range(3):
        assert b'"x"' in await reader.readuntil(b"0\r\n\r\n")
        writer.write(request)
    await reader.readuntil(b"0\r\n\r\n")
    writer.close()


async def test_pipelined_requests_are_answered_in_order(running: Any) -> None:
    running.model.script = lambda played: played.say(str(played.request.conditions.max_tokens))
    requests = [running.post("/v1/chat/completions", {**BODY, "max_tokens": n, "stream": True}) for n in (3, 4, 5)]
    reader, writer = await running.raw(b"".join(requests))
    for n in (3, 4, 5):
        assert f'"{n}"'.encode() in await reader.readuntil(b"0\r\n\r\n")
    writer.close()


async def test_a_slow_client_pauses_its_generation_and_loses_nothing(running: Any) -> None:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(sock, ("127.0.0.1", running.port))
    await loop.sock_sendall(sock, running.post("/v1/chat/completions", {**BODY, "stream": True}))
    played = await running.model.generations.get()
    sent = 0
    while not played.pauses:  # until every buffer on the way is full
        played.text(f"<{sent}>" + "x" * 10_000)
        played.flush()
        sent += 1
        await asyncio.sleep(0)
    for _ in range(3):  # what comes after the pause is held
        played.text(f"<{sent}>" + "x" * 10_000)
        played.flush()
        sent += 1
    held = played.resumes
    played.finish()
    played.complete()
    data = b""
    while b"[DONE]" not in data:
        data += await loop.sock_recv(sock, 1 << 20)
    assert [data.find(f"<{number}>".encode()) > 0 for number in range(sent)] == [True] * sent
    assert data.count(b"x" * 10_000) + data.count(b"\r\n") >= sent
    assert played.resumes >= held
    assert (await running.summaries.get()).outcome == "completed"
    sock.close()


async def test_a_slow_client_resumes_its_generation(running: Any) -> None:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(sock, ("127.0.0.1", running.port))
    await loop.sock_sendall(sock, running.post("/v1/chat/completions", {**BODY, "stream": True}))
    played = await running.model.generations.get()
    while not played.pauses:
        played.text("x" * 10_000)
        played.flush()
        await asyncio.sleep(0)
    while played.resumes < played.pauses:
        await loop.sock_recv(sock, 1 << 20)
    sock.close()
    await killed(played)


async def test_a_slow_client_that_leaves_kills_its_generation(running: Any) -> None:
    reader, writer = await running.raw(running.post("/v1/chat/completions", {**BODY, "stream": True}))
    writer.transport.pause_reading()
    played = await running.model.generations.get()
    while not played.pauses:
        played.text("x" * 100_000)
        played.flush()
        await asyncio.sleep(0)
    writer.transport.abort()
    await killed(played)
    assert (await running.summaries.get()).status == 499
    del reader


async def test_the_server_s_end_gives_running_requests_their_time(running: Any) -> None:
    reader, _ = await running.raw(running.post("/v1/chat/completions", {**BODY, "stream": True}))
    played = await running.model.generations.get()
    played.text("a")
    played.flush()
    stopping = asyncio.create_task(running.server.stop())
    await reader.readuntil(b'"a"')
    while running.server._server.servers[0].is_serving():  # noqa: ASYNC110 - uvicorn looks ten times a second
        await asyncio.sleep(0.01)
    played.text("b")
    played.flush()
    played.finish()
    played.complete()
    assert b"[DONE]" in await reader.readuntil(b"0\r\n\r\n")
    await stopping
    assert (await running.summaries.get()).outcome == "completed"


@pytest.mark.parametrize("stream", [False, True])
async def test_the_server_s_end_cuts_off_what_takes_longer(running: Any, stream: bool, caplog: pytest.LogCaptureFixture) -> None:
    reader, _ = await running.raw(running.post("/v1/chat/completions", {**BODY, "stream": stream}))
    played = await running.model.generations.get()
    played.text("a")
    played.flush()
    stopping = asyncio.create_task(running.server.stop())
    await killed(played)
    await stopping
    answer = await reader.read()
    assert (b'"a"' in answer) is stream
    assert b"The server is shutting down." in answer
    assert (b"[DONE]" in answer) is stream
    assert answer.startswith(b"HTTP/1.1 200" if stream else b"HTTP/1.1 503")
    summary = await running.summaries.get()
    assert (summary.status, summary.error) == (503, "service_unavailable")
    assert "Traceback" not in caplog.text


async def test_a_stream_is_chunked_and_a_body_has_a_length(running: Any) -> None:
    running.model.script = lambda played: played.say("x")
    stream, unary = await running.chat(stream=True), await running.chat()
    assert stream.headers["transfer-encoding"] == "chunked"
    assert stream.headers["cache-control"] == "no-cache"
    assert int(unary.headers["content-length"]) == len(unary.content)


@pytest.mark.parametrize("accepted", [False, True])
async def test_who_has_just_connected_when_the_server_ends_is_still_answered(running: Any, accepted: bool) -> None:
    running.model.script = lambda played: played.say("a")
    with socket.create_connection(("127.0.0.1", running.port)) as client:
        if accepted:
            while not running.server._server.server_state.connections:  # noqa: ASYNC110  # uvicorn tells nobody
                await asyncio.sleep(0.01)
        client.setblocking(False)
        ending = asyncio.create_task(running.server._server.shutdown([running.server._sock]))
        await asyncio.sleep(0)  # not a turn in which the loop could accept: the door closes now
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", running.port)).close()
        reader, writer = await asyncio.open_connection(sock=client.dup())
        writer.write(running.post("/v1/chat/completions", BODY))
        assert b"200 OK" in await asyncio.wait_for(reader.readline(), 5)
        await reader.read()
        writer.close()
    await ending


async def test_a_connection_that_says_nothing_does_not_hold_up_the_end(running: Any) -> None:
    with socket.create_connection(("127.0.0.1", running.port)):
        async with asyncio.timeout(5):
            await running.server.stop()
