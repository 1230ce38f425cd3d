"""The status server tells what is true at the moment, and costs nothing where it was not asked for."""

from __future__ import annotations

import asyncio
import json
import socket
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from dynamo_core.errors import InvalidRequest, StartupError
from dynamo_core.runtime import DistributedRuntime


@pytest.fixture
async def make(tmp_path: Path) -> AsyncIterator[Callable[..., DistributedRuntime]]:
    made = []

    def runtime(port: int = 0, **options: Any) -> DistributedRuntime:
        made.append(
            DistributedRuntime(file_kv=str(tmp_path / "kv"), event_plane="inproc", system=("127.0.0.1", port), grace=5, **options)
        )
        return made[-1]

    yield runtime
    for one in made:
        await one.shutdown()


async def send(runtime: DistributedRuntime, raw: bytes, host: str = "127.0.0.1") -> tuple[int, bytes]:
    assert runtime.system is not None
    reader, writer = await asyncio.open_connection(host, runtime.system.port)
    writer.write(raw)
    answer = await asyncio.wait_for(reader.read(), 20)
    writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), body


async def ask(
    runtime: DistributedRuntime, path: str, *, method: str = "GET", body: bytes = b"", host: str = "127.0.0.1"
) -> tuple[int, Any]:
    raw = f"{method} {path} HTTP/1.1\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
    status, answer = await send(runtime, raw, host)
    return status, json.loads(answer) if answer.startswith(b"{") else answer.decode()


async def count(request: int) -> AsyncIterator[int]:
    for number in range(request):
        yield number


async def test_ready_follows_what_discovery_lists_and_live_does_not_care(make: Any) -> None:
    runtime = make()
    await runtime.start()
    assert (await ask(runtime, "/live"))[0] == 200
    assert (await ask(runtime, "/ready"))[0] == 503

    served = await runtime.endpoint("n.c.e").serve(lambda request, context, sink: None)
    status, body = await ask(runtime, "/ready")
    assert (status, body["status"], body["endpoints"]) == (200, "ready", {"n.c.e": "ready"})
    assert set(body["uptime"]) == {"secs", "nanos"}
    assert (await ask(runtime, "/health"))[0] == 200

    await runtime.sleep()
    status, body = await ask(runtime, "/health")
    assert (status, body["status"], body["endpoints"]) == (503, "notready", {"n.c.e": "asleep"})
    await runtime.wake()
    await runtime.set_health_status(False)
    assert (await ask(runtime, "/ready"))[0] == 503
    await runtime.set_health_status(True)
    assert (await ask(runtime, "/ready"))[0] == 200

    await runtime.set_health_status(False)
    late = await runtime.endpoint("n.c.late").serve(lambda request, context, sink: None)
    assert late.state == "unhealthy"
    await runtime.set_health_status(True)
    assert late.state == "ready"
    await late.close()

    await served.leave()
    assert (await ask(runtime, "/ready"))[1]["endpoints"] == {"n.c.e": "draining"}
    assert (await ask(runtime, "/live"))[0] == 200


async def test_a_draining_process_is_live_but_not_ready(make: Any) -> None:
    runtime, waiting = make(), asyncio.Event()

    async def hold(request: Any) -> AsyncIterator[int]:
        yield 1
        await waiting.wait()

    serving = asyncio.create_task(runtime.endpoint("n.c.e").serve_endpoint(hold))
    client = await runtime.endpoint("n.c.e").client()
    await client.wait_for_instances(10)
    stream = client.generate(1)
    await anext(stream)
    stopping = runtime.shutdown()
    async with asyncio.timeout(10):
        while (await ask(runtime, "/ready"))[0] != 503:  # noqa: ASYNC110  # another task's progress
            await asyncio.sleep(0.01)
    assert (await ask(runtime, "/live"))[0] == 200
    waiting.set()
    await stopping
    await serving
    with pytest.raises(OSError):
        await ask(runtime, "/live")


async def test_metrics_are_those_of_endpoints_and_of_whoever_adds_some(make: Any, caplog: pytest.LogCaptureFixture) -> None:
    runtime = make()
    task = asyncio.create_task(runtime.endpoint("n.c.e").serve_endpoint(count, metrics_labels=[("model", "m")]))
    client = await runtime.endpoint("n.c.e").client()
    await client.wait_for_instances(10)
    assert [item.data() async for item in client.generate(2)] == [0, 1]
    assert 'dynamo_component_requests_total{dynamo_component="c"' in (await ask(runtime, "/metrics"))[1]

    async def engine() -> bytes:
        return b"# TYPE my_engine gauge\nmy_engine 3\n"

    async def broken() -> bytes:
        raise LookupError("no metrics")

    async def garbage() -> bytes:
        return b"}{"

    runtime.scrapes += [engine, broken, garbage]
    status, text = await ask(runtime, "/metrics")
    assert status == 200
    assert "my_engine 3" in text
    assert 'model="m"' in text
    assert caplog.text.count("metrics are missing from a scrape") == 2
    await runtime.shutdown()
    await task


async def test_registered_routes_answer_and_their_errors_keep_their_status(make: Any) -> None:
    runtime = make()
    await runtime.start()

    async def flush(body: dict[str, Any]) -> dict[str, Any]:
        if body.get("bad"):
            raise InvalidRequest("that cannot be flushed")
        if body.get("bug"):
            raise LookupError("a bug")
        return {"flushed": body.get("blocks", "all")}

    runtime.register_engine_route("flush", flush)
    assert await ask(runtime, "/engine/flush") == (200, {"flushed": "all"})
    assert await ask(runtime, "/engine/flush", method="POST", body=b'{"blocks": 3}') == (200, {"flushed": 3})
    assert await ask(runtime, "/engine/flush", method="POST", body=b'{"bad": 1}') == (400, {"error": "that cannot be flushed"})
    status, answer = await ask(runtime, "/engine/flush", method="POST", body=b'{"bug": 1}')
    assert (status, "a bug" in answer["error"]) == (500, False)
    assert (await ask(runtime, "/engine/flush", method="POST", body=b"[1]"))[0] == 400
    status, answer = await ask(runtime, "/engine/other")
    assert (status, "flush" in answer["error"]) == (404, True)


async def test_other_hosts_learn_and_command_nothing(tmp_path: Path) -> None:
    """This host under its own address stands for another."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing
        except OSError:
            pytest.skip("this host has the loopback only")
        own = probe.getsockname()[0]
    if own.startswith("127."):
        pytest.skip("this host has the loopback only")

    async def flush(body: dict[str, Any]) -> dict[str, Any]:
        return {}

    async with DistributedRuntime(file_kv=str(tmp_path / "kv"), event_plane="inproc", system=("0.0.0.0", 0)) as runtime:
        runtime.register_engine_route("flush", flush)
        assert (await ask(runtime, "/engine/flush"))[0] == 200
        status, answer = await ask(runtime, "/engine/flush", host=own)
        assert (status, "this host alone" in answer["error"]) == (403, True)
        assert (await ask(runtime, "/live", host=own))[0] == 200


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"hello\r\n\r\n", 400),
        (b"GET /live HTTP/2\r\n\r\n", 505),
        (b"GET /nowhere HTTP/1.1\r\n\r\n", 404),
        (b"POST /live HTTP/1.1\r\n\r\n", 405),
        (b"HEAD /live HTTP/1.1\r\n\r\n", 200),
        (b"GET /live?verbose=1 HTTP/1.0\r\n\r\n", 200),
        (b"POST /engine/x HTTP/1.1\r\nContent-Length: 99999999\r\n\r\n", 413),
        (b"POST /engine/x HTTP/1.1\r\nContent-Length: many\r\n\r\n", 400),
        (b"POST /engine/x HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", 413),
        (b"GET /live HTTP/1.1\r\nX: " + b"x" * 100_000 + b"\r\n\r\n", 400),
    ],
)
async def test_whatever_is_sent_gets_its_status(make: Any, raw: bytes, status: int) -> None:
    runtime = make()
    await runtime.start()
    assert (await send(runtime, raw))[0] == status


async def test_a_taken_port_is_one_sentence_and_leaves_nothing_open(make: Any) -> None:
    first = make()
    await first.start()
    assert first.system is not None
    with pytest.raises(StartupError, match=f"127.0.0.1:{first.system.port}.*DYN_SYSTEM_PORT"):
        await make(first.system.port).start()


async def test_without_a_port_there_is_no_server(tmp_path: Path) -> None:
    async with DistributedRuntime(file_kv=str(tmp_path / "kv"), event_plane="inproc") as runtime:
        assert runtime.system is None
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", "import sys, dynamo_core.runtime; sys.exit('dynamo_core.runtime.system' in sys.modules)"
    )
    assert await process.wait() == 0
