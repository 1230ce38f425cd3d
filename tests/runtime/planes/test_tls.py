"""TLS and mutual TLS between processes."""

from __future__ import annotations

import asyncio
import re
import subprocess
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from dynamo_core.contracts import Context, Instance
from dynamo_core.errors import CannotConnect, ConfigError, Disconnected, StartupError
from dynamo_core.runtime.planes.streams import RequestPlaneEvents
from dynamo_core.runtime.planes.tcp import TcpConfig, TcpPlane, dynamo_request_planes
from dynamo_core.specs import PlaneContext


def echo(request: Any, context: Context, sink: Any) -> None:
    sink.item(request)
    sink.end()


def instance(address: str) -> Instance:
    return Instance(instance_id=7, namespace="test", component="backend", endpoint="generate", address=address)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A certificate that trusts itself, for both sides, and its key."""
    folder = tmp_path_factory.mktemp("tls")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", "key.pem",
         "-out", "cert.pem", "-days", "2", "-subj", "/CN=test", "-addext", "subjectAltName=IP:127.0.0.1,DNS:worker.test"],
        check=True, capture_output=True, cwd=folder,
    )  # fmt: skip
    return {"tls_cert": str(folder / "cert.pem"), "tls_key": str(folder / "key.pem")}


@pytest.fixture
async def make(folder: str) -> AsyncIterator[Callable[..., TcpPlane]]:
    planes = []

    def made(number: int, **config: Any) -> TcpPlane:
        planes.append(TcpPlane(TcpConfig(**config), PlaneContext(namespace="test", run_dir=folder, instance_id=number)))
        return planes[-1]

    yield made
    for plane in planes:
        await plane.close()


async def test_a_server_shows_its_certificate_and_streams_pass(make: Any, certificate: Any, new_receiver: Any) -> None:
    address = await make(7, host="127.0.0.1", **certificate).serve("test.backend.generate", echo)
    assert address.startswith("tls:127.0.0.1:")
    for name in (None, "worker.test"):
        client, receiver = make(8, tls_ca=certificate["tls_cert"], tls_server_name=name), new_receiver()
        client.open(instance(address), "x" * 1_000_000, Context(), receiver)
        assert await receiver.result() == ["x" * 1_000_000]


@pytest.mark.parametrize("wrong", [{}, {"tls_server_name": "other"}], ids=["unknown authority", "another name"])
async def test_a_certificate_that_is_not_trusted_is_cannot_connect(make: Any, certificate: Any, wrong: Any) -> None:
    address = await make(7, host="127.0.0.1", **certificate).serve("test.backend.generate", echo)
    if wrong:
        wrong = {"tls_ca": certificate["tls_cert"], **wrong}
    with pytest.raises(CannotConnect, match=f"{address}.*[Cc]ertificate|{address}.*CERTIFICATE"):
        await make(8, **wrong).connect(instance(address))


async def test_mutual_tls_turns_away_who_shows_no_certificate(make: Any, certificate: Any, new_receiver: Any) -> None:
    ca = {"tls_ca": certificate["tls_cert"]}
    address = await make(7, host="127.0.0.1", tls_verify_clients=True, **ca, **certificate).serve("test.backend.generate", echo)
    receiver = new_receiver()
    make(8, **ca, **certificate).open(instance(address), "hello", Context(), receiver)
    assert await receiver.result() == ["hello"]
    refused = new_receiver()
    make(9, **ca).open(instance(address), "hello", Context(), refused)
    with pytest.raises((CannotConnect, Disconnected)):
        await refused.result()


async def test_events_come_over_the_same_connection_and_to_nobody_without_a_certificate(make: Any, certificate: Any) -> None:
    ca = {"tls_ca": certificate["tls_cert"]}
    publisher = RequestPlaneEvents(make(7, host="127.0.0.1", tls_verify_clients=True, **ca, **certificate), 7)
    address = await publisher.address()
    assert address.startswith("7@tls:127.0.0.1:")
    trusted, stranger = RequestPlaneEvents(make(8, **ca, **certificate), 8), RequestPlaneEvents(make(9, **ca), 9)
    heard: list[bytes] = []
    overheard: list[bytes] = []
    stranger.subscribe(address, "kv", overheard.append)
    trusted.subscribe(address, "kv", heard.append)
    async with asyncio.timeout(10):
        while len(heard) < 30:
            publisher.publish("kv", b"stored")
            await asyncio.sleep(0.01)
    assert not overheard
    for events in (trusted, stranger, publisher):
        await events.close()


async def test_a_file_that_cannot_be_used_is_one_sentence(make: Any, certificate: Any, tmp_path: Path) -> None:
    with pytest.raises(StartupError, match=r"/missing\.pem.*tls_cert and tls_key"):
        make(7, tls_cert="/missing.pem", tls_key=certificate["tls_key"])
    (tmp_path / "ca.pem").write_text("no certificate")
    with pytest.raises(StartupError, match=r"ca\.pem.*tls_ca"):
        make(7, tls_ca=str(tmp_path / "ca.pem"))


async def test_the_environment_names_the_files_and_halves_are_refused(
    folder: str, certificate: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (spec,) = dynamo_request_planes()
    context = PlaneContext(namespace="test", run_dir=folder, instance_id=7)
    monkeypatch.setenv("DYN_TCP_RPC_HOST", "127.0.0.1")
    monkeypatch.setenv("DYN_TCP_TLS_CERT_PATH", certificate["tls_cert"])
    with pytest.raises(ConfigError, match="tls_cert and tls_key belong together"):
        spec.factory(None, context)
    monkeypatch.setenv("DYN_TCP_TLS_KEY_PATH", certificate["tls_key"])
    plane = spec.factory(None, context)
    assert (await plane.serve("test.backend.generate", echo)).startswith("tls:127.0.0.1:")
    await plane.close()
    monkeypatch.setenv("DYN_TCP_TLS_VERIFY_CLIENTS", "true")
    with pytest.raises(ConfigError, match="tls_verify_clients needs tls_ca"):
        spec.factory(None, context)


@pytest.mark.parametrize(
    ("advertise", "published"),
    [
        ("10.0.0.7", r"tcp:10\.0\.0\.7:\d+"),
        ("worker:9", "tcp:worker:9"),
        ("[fd00::7]:9", "tcp:fd00::7:9"),
        ("fd00::7", r"tcp:fd00::7:\d+"),
    ],
)
async def test_another_address_than_the_listeners_can_be_published(make: Any, advertise: str, published: str) -> None:
    address = await make(7, host="127.0.0.1", advertise=advertise).serve("test.backend.generate", echo)
    assert re.fullmatch(published, address)
