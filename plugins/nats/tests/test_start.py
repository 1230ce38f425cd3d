"""Addresses, credentials and certificates: what works, and the sentence for what does not."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dynamo_core.errors import ConfigError, StartupError
from dynamo_core.plugins import activate
from dynamo_core.specs import PlaneContext
from dynamo_core.testing.servers import NatsServer, free_port
from dynamo_nats import NatsConfig
from dynamo_nats.events import NatsEvents
from dynamo_nats.options import from_environment
from dynamo_nats.requests import NatsRequests

CONTEXT = PlaneContext(namespace="n", run_dir="/", instance_id=7)


async def start(*servers: str, **config: Any) -> None:
    events = NatsEvents(NatsConfig(servers=servers, **{"connect_timeout_secs": 5, **config}), CONTEXT)
    await events.start()
    await events.close()


def test_importing_the_plugin_imports_no_nats() -> None:
    code = "import sys, dynamo_nats; list(dynamo_nats.dynamo_event_planes()); print('nats' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "False\n"


def test_settings_stand_above_the_environment() -> None:
    environ = {"NATS_SERVER": "nats-0, tls://nats-1:1,", "NATS_AUTH_USERNAME": "u", "NATS_AUTH_PASSWORD": "p"}
    config = from_environment(NatsConfig(), environ)
    assert (config.servers, config.username, config.password) == (("nats://nats-0:4222", "tls://nats-1:1"), "u", "p")
    assert from_environment(NatsConfig(servers=("nats://a",), username="other"), environ).servers == ("nats://a:4222",)
    assert from_environment(NatsConfig(), {}).servers == ("nats://127.0.0.1:4222",)


@pytest.mark.parametrize("server", ["http://a:1", "nats://", "nats://a:port", "nats://a:1/x"])
def test_an_address_that_is_none_is_named(server: str) -> None:
    with pytest.raises(ConfigError, match="is no address of a NATS server"):
        from_environment(NatsConfig(servers=(server,)), {})


def test_the_plugin_is_found_by_its_name_and_checks_its_table() -> None:
    compiled = activate(["nats"], tables={"nats": {"servers": ["nats://a:1"]}})
    assert set(compiled.request_planes) == set(compiled.event_planes) == {"nats"}
    for table in ({"server": "a"}, {"prefix": "a b"}, {"prefix": ">"}, {"heartbeat_secs": 0}):
        with pytest.raises(ConfigError):
            activate(["nats"], tables={"nats": table})


async def test_an_address_where_nobody_listens_is_one_sentence() -> None:
    url = f"nats://127.0.0.1:{free_port()}"
    with pytest.raises(StartupError, match=f"no NATS answers within 0.3 s at {url} .*NATS_SERVER"):
        await start(url, connect_timeout_secs=0.3)
    plane = NatsRequests(NatsConfig(servers=(url,), connect_timeout_secs=0.3), CONTEXT)
    with pytest.raises(StartupError, match="NATS_SERVER"):
        await plane.serve("n.c.e", lambda request, context, sink: None)
    await plane.close()


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 200 OK\r\n\r\n", b"INFO {}\r\n", b"INFO garbage\r\n", b"\xff" * 10_000])
async def test_something_else_at_the_address_is_one_sentence(answer: bytes) -> None:
    writers = []

    def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(answer)
        writers.append(writer)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    url = f"nats://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    with pytest.raises(StartupError, match=f"at {url}"):
        await start(url, connect_timeout_secs=0.5)
    server.close()
    for _ in range(10):  # turns of the loop: one that was being accepted comes, and what is aborted closes
        for writer in writers:
            writer.transport.abort()
        await asyncio.sleep(0)
    await server.wait_closed()


async def test_a_dead_address_beside_a_living_one_is_passed_over(nats: NatsServer) -> None:
    await start(f"nats://127.0.0.1:{free_port()}", nats.url)


async def test_a_user_who_may_not_is_told_so_at_once(nats_program: str, tmp_path: Path) -> None:
    server = NatsServer(nats_program, tmp_path / "users", options=["--user", "u", "--pass", "p"])
    with server:
        await start(server.url, username="u", password="p")
        with pytest.raises(StartupError, match=f"NATS at {server.url} refuses.*NATS_AUTH_USERNAME"):
            await asyncio.wait_for(start(server.url, username="u", password="wrong", connect_timeout_secs=30), 10)


async def test_both_sides_show_certificates(nats_program: str, tmp_path: Path) -> None:
    cert, key = str(tmp_path / "cert.pem"), str(tmp_path / "key.pem")
    subprocess.run(  # noqa: ASYNC221
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", key,
         "-out", cert, "-days", "2", "-subj", "/CN=test", "-addext", "subjectAltName=IP:127.0.0.1"],
        check=True, capture_output=True,
    )  # fmt: skip
    options = ["--tls", "--tlscert", cert, "--tlskey", key, "--tlsverify", "--tlscacert", cert]
    server = NatsServer(nats_program, tmp_path / "tls", options=options)
    with server:
        url = server.url.replace("nats:", "tls:")
        await start(url, tls_ca=cert, tls_cert=cert, tls_key=key)
        for wrong in ({}, {"tls_ca": cert}):
            with pytest.raises(StartupError, match=f"at {url}"):
                await start(url, connect_timeout_secs=0.5, **wrong)
        with pytest.raises(StartupError, match="tls_ca"):
            await start(url, tls_ca="/missing.pem")
