"""Addresses, credentials and certificates: what works, and the sentence for what does not."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from aetcd.rpc import rpc_pb2, rpc_pb2_grpc

from dynamo_core.contracts import Put
from dynamo_core.errors import ConfigError, StartupError
from dynamo_core.plugins import activate
from dynamo_core.testing.servers import EtcdServer, free_port
from dynamo_etcd import EtcdConfig
from dynamo_etcd.options import from_environment


def test_importing_the_plugin_imports_no_grpc() -> None:
    code = (
        "import sys, dynamo_etcd; dynamo_etcd.dynamo_config(); list(dynamo_etcd.dynamo_discovery()); print('grpc' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "False\n"


# --- settings ----------------------------------------------------------------------------------------------------------------


def test_settings_stand_above_the_environment() -> None:
    environ = {
        "ETCD_ENDPOINTS": "etcd-0:2379, https://etcd-1:2380,",
        "ETCD_STARTUP_CONNECT_TIMEOUT_SECONDS": "120",
        "ETCD_AUTH_USERNAME": "user",
        "ETCD_AUTH_PASSWORD": "secret",
        "ETCD_AUTH_CA": "/ca",
    }
    options = from_environment(EtcdConfig(), environ)
    assert options.where == "http://etcd-0:2379, https://etcd-1:2380"
    assert (options.connect_seconds, options.user, options.tls_ca) == (120, ("user", "secret"), "/ca")
    options = from_environment(EtcdConfig(endpoints=("http://[::1]:1",), connect_timeout_secs=3, username="other"), environ)
    assert (options.where, options.connect_seconds, options.user) == ("http://[::1]:1", 3, ("other", "secret"))
    assert from_environment(EtcdConfig(), {}).where == "http://127.0.0.1:2379"


@pytest.mark.parametrize(
    "address", ["etcd", "etcd:port", "ftp://etcd:1", "http://", "http://etcd:1/path", "http://etcd:99999", "a b:"]
)
def test_an_address_that_is_none_is_named(address: str) -> None:
    with pytest.raises(ConfigError, match="is no address of an etcd"):
        from_environment(EtcdConfig(endpoints=(address,)), {})


@pytest.mark.parametrize("text", ["soon", "0", "-1", "nan", "inf"])
def test_a_timeout_that_is_none_is_named(text: str) -> None:
    with pytest.raises(ConfigError, match="ETCD_STARTUP_CONNECT_TIMEOUT_SECONDS"):
        from_environment(EtcdConfig(), {"ETCD_STARTUP_CONNECT_TIMEOUT_SECONDS": text})


@pytest.mark.parametrize("half", [{"username": "u"}, {"password": "p"}, {"tls_cert": "c"}, {"tls_key": "k"}])
def test_half_of_a_pair_of_settings_is_refused(half: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="belong together"):
        from_environment(EtcdConfig(**half), {})  # type: ignore[arg-type]


def test_the_plugin_is_found_by_its_name_and_checks_its_table() -> None:
    compiled = activate(["etcd"], tables={"etcd": {"endpoints": ["http://a:1"], "lease_ttl_secs": 5}})
    assert compiled.discovery["etcd"].config.lease_ttl_secs == 5
    for table in ({"endpoint": "a"}, {"lease_ttl_secs": 0}, {"prefix": ""}):
        with pytest.raises(ConfigError):
            activate(["etcd"], tables={"etcd": table})


# --- wrong addresses ---------------------------------------------------------------------------------------------------------


async def test_an_address_where_nobody_listens_is_one_sentence(store: Any) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(StartupError, match=rf"no etcd answers within 0.2 s at {url} .*refused.*ETCD_ENDPOINTS"):
        await store(url, connect_timeout_secs=0.2)


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", b"\x00\xff" * 5000])
async def test_something_else_at_the_address_is_one_sentence(store: Any, answer: bytes) -> None:
    writers = []

    def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(answer)
        writers.append(writer)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    with pytest.raises(StartupError, match=f"at http://127.0.0.1:{port}"):
        await store(f"http://127.0.0.1:{port}", connect_timeout_secs=0.5)
    server.close()
    for _ in range(10):  # turns of the loop: one that was being accepted comes, and what is aborted closes
        for writer in writers:
            writer.transport.abort()
        await asyncio.sleep(0)
    await server.wait_closed()


async def test_a_grpc_server_that_is_no_etcd_is_one_sentence(store: Any) -> None:
    server = grpc.aio.server()
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    with pytest.raises(StartupError, match="no etcd with the v3 API"):
        await store(f"http://127.0.0.1:{port}")
    await server.stop(0)


async def test_a_start_waits_for_an_etcd_that_comes_late(etcd: Any, store: Any) -> None:
    etcd.kill()
    late = asyncio.create_task(store(etcd.url))
    await asyncio.sleep(0.3)
    assert not late.done()
    await asyncio.to_thread(etcd.start)
    await (await late).put("a", b"1")


async def test_a_dead_address_before_a_living_one_is_passed_over(etcd: Any, store: Any) -> None:
    one = await store(f"http://127.0.0.1:{free_port()}", etcd.url)
    await one.put("a", b"1")
    assert await one.get_prefix("") == {"a": b"1"}


# --- users -------------------------------------------------------------------------------------------------------------------


async def enable_users(url: str) -> None:
    """``root`` may do everything, ``worker`` may use dynamo/."""
    async with grpc.aio.insecure_channel(url.removeprefix("http://")) as channel:
        auth: Any = rpc_pb2_grpc.AuthStub(channel)
        await auth.RoleAdd(rpc_pb2.AuthRoleAddRequest(name="dynamo"))
        permission = {"permType": "READWRITE", "key": b"dynamo/", "range_end": b"dynamo0"}
        await auth.RoleGrantPermission(rpc_pb2.AuthRoleGrantPermissionRequest(name="dynamo", perm=permission))
        for name, role in (("root", "root"), ("worker", "dynamo")):
            await auth.UserAdd(rpc_pb2.AuthUserAddRequest(name=name, password="secret"))
            await auth.UserGrantRole(rpc_pb2.AuthUserGrantRoleRequest(user=name, role=role))
        await auth.AuthEnable(rpc_pb2.AuthEnableRequest())


async def test_a_user_whose_tokens_are_gone_signs_in_again(etcd: Any, store: Any, follow: Any) -> None:
    await enable_users(etcd.url)
    one, two = [await store(etcd.url, username="worker", password="secret") for _ in range(2)]
    await one.put("a", b"1")
    log = await follow(two)
    etcd.kill()
    await asyncio.to_thread(etcd.start)  # tokens end with the process that gave them
    await one.put("b", b"2")
    await log.until(Put("b", b"2"))
    one._members._token = two._members._token = "forged"
    await one.put("c", b"3")
    assert (await two.get_prefix("c")) == {"c": b"3"}
    await log.until(Put("c", b"3"))


async def test_a_user_who_may_not_is_told_so_at_once(etcd: Any, store: Any) -> None:
    await enable_users(etcd.url)
    for user, match in (
        ({"username": "worker", "password": "wrong"}, "ETCD_AUTH_PASSWORD"),
        ({}, "ETCD_AUTH_USERNAME"),
        ({"username": "worker", "password": "secret", "prefix": "other/"}, "other/"),
    ):
        with pytest.raises(StartupError, match=match):
            await store(etcd.url, **user)


async def test_a_user_name_is_not_needed_where_authentication_is_off(etcd: Any, store: Any) -> None:
    one = await store(etcd.url, username="worker", password="secret")
    await one.put("a", b"1")


# --- TLS ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[str, str]:
    """A certificate that trusts itself, for both sides, and its key."""
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", str(key),
         "-out", str(cert), "-days", "2", "-subj", "/CN=test", "-addext", "subjectAltName=IP:127.0.0.1"],
        check=True, capture_output=True,
    )  # fmt: skip
    return str(cert), str(key)


@pytest.fixture
def secure(etcd_program: str, tmp_path: Path, certificate: tuple[str, str]) -> Any:
    cert, key = certificate
    options = ["--cert-file", cert, "--key-file", key, "--client-cert-auth", "--trusted-ca-file", cert]
    server = EtcdServer(etcd_program, tmp_path / "secure", options=options, scheme="https")
    server.start()
    yield server
    server.stop()


async def test_both_sides_show_certificates(secure: Any, store: Any, certificate: tuple[str, str]) -> None:
    cert, key = certificate
    one = await store(secure.url, tls_ca=cert, tls_cert=cert, tls_key=key)
    await one.put("a", b"1")
    assert await one.get_prefix("") == {"a": b"1"}
    for wrong in ({}, {"tls_ca": cert}, {"tls_ca": cert, "tls_cert": cert, "tls_key": key, "tls_server_name": "other"}):
        with pytest.raises(StartupError, match=f"at {secure.url}"):
            await store(secure.url, connect_timeout_secs=0.5, **wrong)


async def test_a_certificate_that_cannot_be_read_is_named(store: Any) -> None:
    with pytest.raises(StartupError, match=r"/missing\.pem, named for TLS to etcd, cannot be read"):
        await store("https://127.0.0.1:1", tls_ca="/missing.pem")


def test_the_environment_of_this_test_run_is_not_read() -> None:
    assert not {name for name in os.environ if name.startswith("ETCD_")}, "these tests take etcd's address from the environment"
