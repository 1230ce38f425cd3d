"""What only real sockets can show: garbage, versions, addresses, a killed process."""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import stat
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from dynamo_core.contracts import Context, Instance
from dynamo_core.errors import CannotConnect, Disconnected, StartupError
from dynamo_core.runtime.planes.frames import VERSION, Data, End, FrameReader, Hello, Open, Part, encode_frame, seal
from dynamo_core.runtime.planes.tcp import TcpConfig, TcpPlane, dynamo_request_planes
from dynamo_core.specs import PlaneContext


def echo(request: Any, context: Context, sink: Any) -> None:
    sink.item(request)
    sink.end()


def plane_context(folder: str, number: int = 7) -> PlaneContext:
    return PlaneContext(namespace="test", run_dir=folder, instance_id=number)


def instance(address: str) -> Instance:
    return Instance(instance_id=7, namespace="test", component="backend", endpoint="generate", address=address)


@pytest.fixture
async def make(folder: str) -> AsyncIterator[Callable[..., TcpPlane]]:
    planes = []

    def made(number: int = 7, config: TcpConfig | None = None, run_dir: str = folder) -> TcpPlane:
        planes.append(TcpPlane(config or TcpConfig(), plane_context(run_dir, number)))
        return planes[-1]

    yield made
    for plane in planes:
        await plane.close()


async def ask(plane: TcpPlane, address: str, receiver: Any) -> list[Any]:
    plane.open(instance(address), "hello", Context(), receiver)
    result: list[Any] = await receiver.result()
    return result


GARBAGE = {
    "http": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "length": b"\xff\xff\xff\xff",
    "no greeting": seal(encode_frame([End(1)])),
    "no msgpack": seal(b"\xc1" * 20),
    "a server's message": seal(encode_frame([Hello(VERSION), Data(1, [1])])),
    "opened twice": seal(encode_frame([Hello(VERSION), *[Open(1, "test.backend.wait", 7, "r", None)] * 2])),
    "part of a part": seal(encode_frame([Hello(VERSION), Part(1, True, b"\x94\x0a\x01\xc3\xc4\x00")])),
    "random": random.Random(1).randbytes(5000),
}


@pytest.mark.parametrize("name", GARBAGE)
async def test_garbage_closes_that_connection_with_one_log_line(
    make: Any, new_receiver: Any, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    server = make()
    address = await server.serve("test.backend.generate", echo)
    await server.serve("test.backend.wait", lambda request, context, sink: None)
    reader, writer = await asyncio.open_unix_connection(address.removeprefix("unix:"))
    writer.write(GARBAGE[name])
    with contextlib.suppress(ConnectionResetError):
        await asyncio.wait_for(reader.read(), 10)
    writer.close()
    assert len([record for record in caplog.records if record.name.startswith("dynamo_core")]) == 1
    assert await ask(make(8), address, new_receiver()) == ["hello"]


async def test_a_server_that_sends_garbage_is_disconnected(make: Any, folder: str, new_receiver: Any) -> None:
    async def babble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(10)
        writer.write(b"babble" * 100)
        await writer.drain()
        await reader.read()
        writer.close()

    async with await asyncio.start_unix_server(babble, f"{folder}/babble"):
        with pytest.raises(Disconnected):
            await ask(make(), f"unix:{folder}/babble", new_receiver())


async def test_another_version_is_refused_in_words(make: Any, folder: str, new_receiver: Any) -> None:
    async def old(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(seal(encode_frame([Hello(VERSION + 1)])))
        await reader.read()
        writer.close()

    async with await asyncio.start_unix_server(old, f"{folder}/old"):
        with pytest.raises(CannotConnect, match=f"version {VERSION + 1}"):
            await ask(make(), f"unix:{folder}/old", new_receiver())


async def test_a_client_of_another_version_is_greeted_and_closed(make: Any) -> None:
    address = await make().serve("test.backend.generate", echo)
    reader, writer = await asyncio.open_unix_connection(address.removeprefix("unix:"))
    writer.write(seal(encode_frame([Hello(VERSION + 1)])))
    assert FrameReader().feed(await reader.read()) == [Hello(VERSION, 7)]
    writer.close()


async def test_the_socket_is_private_and_removed_on_close(make: Any, folder: str) -> None:
    plane = make()
    path = Path((await plane.serve("test.backend.generate", echo)).removeprefix("unix:"))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    await plane.close()
    assert not path.exists()


async def test_a_run_folder_too_long_for_a_socket_still_works(make: Any, tmp_path: Path, new_receiver: Any) -> None:
    deep = tmp_path / ("x" * 120)
    deep.mkdir()
    address = await make(run_dir=str(deep)).serve("test.backend.generate", echo)
    assert await ask(make(8), address, new_receiver()) == ["hello"]


async def test_a_run_folder_that_is_missing_is_one_sentence(make: Any) -> None:
    with pytest.raises(StartupError, match="DYN_RUN_DIR"):
        await make(run_dir="/nonexistent").serve("test.backend.generate", echo)


async def test_a_taken_port_is_one_sentence(make: Any) -> None:
    address = await make(config=TcpConfig(host="127.0.0.1")).serve("test.backend.generate", echo)
    port = int(address.rpartition(":")[2])
    with pytest.raises(StartupError, match=f"127.0.0.1:{port}"):
        await make(config=TcpConfig(port=port)).serve("test.backend.generate", echo)


async def test_the_environment_names_the_address(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DYN_TCP_RPC_HOST", "127.0.0.1")
    (spec,) = dynamo_request_planes()
    plane = spec.factory(None, plane_context(folder))
    assert (await plane.serve("test.backend.generate", echo)).startswith("tcp:127.0.0.1:")
    await plane.close()
    monkeypatch.setenv("DYN_TCP_RPC_PORT", "many")
    with pytest.raises(StartupError, match="DYN_TCP_RPC_PORT"):
        spec.factory(None, plane_context(folder))


SERVER = """
import asyncio, sys
from dynamo_core.runtime.planes.tcp import TcpConfig, TcpPlane
from dynamo_core.specs import PlaneContext

def handler(request, context, sink):
    sink.item("alive")

async def main():
    config = TcpConfig(host="127.0.0.1") if sys.argv[2] == "tcp" else TcpConfig()
    plane = TcpPlane(config, PlaneContext(namespace="test", run_dir=sys.argv[1], instance_id=7))
    print(await plane.serve("test.backend.generate", handler), flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.mark.parametrize("kind", ["unix", "tcp"])
async def test_a_killed_server_fails_its_streams_at_once(make: Any, folder: str, new_receiver: Any, kind: str) -> None:
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", SERVER, folder, kind, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    address = (await process.stdout.readline()).decode().strip()
    client = make(8)
    gone = asyncio.Event()
    client.on_gone(lambda address, endpoint: gone.set())
    receivers = [new_receiver() for _ in range(50)]
    for receiver in receivers:
        client.open(instance(address), None, Context(), receiver)
    for receiver in receivers:
        await receiver.have(1)
    process.send_signal(signal.SIGKILL)
    await asyncio.wait_for(gone.wait(), 5)
    for receiver in receivers:
        with pytest.raises(Disconnected):
            await receiver.result()
    await process.wait()
    with pytest.raises(CannotConnect):
        await ask(client, address, new_receiver())


async def test_a_peer_that_does_not_read_cannot_hold_up_closing(
    make: Any, new_receiver: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dynamo_core.runtime.planes.multiplex._CLOSE_SECONDS", 0.05)
    sinks: list[Any] = []
    server, client = make(), make(8)
    address = await server.serve("test.backend.generate", lambda request, context, sink: sinks.append(sink))
    client.open(instance(address), 1, Context(), new_receiver())
    await client.connect(instance(address))
    client._dialled[address]._transport.pause_reading()
    sinks[0].item(b"x" * 30_000_000)
    sinks[0].end()
    await asyncio.wait_for(server.close(), 5)
