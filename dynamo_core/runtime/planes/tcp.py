"""Plugin ``tcp``: the request plane over Unix sockets on one host, or over TCP between hosts.

The listener is a Unix socket in the run folder unless ``DYN_TCP_RPC_HOST`` or ``[plugins.tcp] host`` names an address. Without
TLS it carries no authentication: it belongs on a network that only the deployment's own machines reach.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import ssl
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any

import msgspec

from dynamo_core.config.settings import setting
from dynamo_core.errors import StartupError
from dynamo_core.hookspecs import hookimpl
from dynamo_core.runtime.planes.client import ClientConnection
from dynamo_core.runtime.planes.heartbeat import Beat
from dynamo_core.runtime.planes.multiplex import MultiplexPlane
from dynamo_core.runtime.planes.published import port_of, published_address
from dynamo_core.runtime.planes.server import ServerConnection
from dynamo_core.runtime.planes.tls import Tls, tls_from
from dynamo_core.specs import PlaneContext, RequestPlaneSpec

__all__ = ["TcpConfig", "TcpPlane", "dynamo_config", "dynamo_request_planes"]

_UNIX_PATH_BYTES = 107
_BACKLOG = 512


def _setting(doc: str, *env: str, flag: str, **meta: Any) -> msgspec.Meta:
    return setting(doc, *env, flag=flag, commands=("worker", "frontend"), **meta)


Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]


# fmt: off
class TcpConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    host: Annotated[str | None, _setting("Address to listen on; a Unix socket if not given.", "DYN_TCP_RPC_HOST", flag="tcp-host")] = None
    port: Annotated[Port | None, _setting("Port to listen on; a free one if not given.", "DYN_TCP_RPC_PORT", flag="tcp-port")] = None
    advertise: Annotated[str | None, _setting("HOST or HOST:PORT to publish; the address that is listened on, or this machine's name for a wildcard.", "DYN_TCP_RPC_ADVERTISE", flag="tcp-advertise")] = None
    heartbeat_secs: Annotated[float, _setting("Both ends of a connection ask each other this often whether they still answer.", flag="", gt=0, le=60)] = 3.0
    heartbeats_missed: Annotated[int, _setting("A peer that lets so many pass is taken as lost.", flag="", ge=1, le=100)] = 5
    tls_cert: Annotated[str | None, _setting("File with this process's own certificate: it listens with TLS.", "DYN_TCP_TLS_CERT_PATH", flag="tcp-tls-cert-path")] = None
    tls_key: Annotated[str | None, _setting("File with its key.", "DYN_TCP_TLS_KEY_PATH", flag="tcp-tls-key-path")] = None
    tls_ca: Annotated[str | None, _setting("File with the certificates that are trusted; the system's if not given.", "DYN_TCP_TLS_CA_CERT_PATH", flag="tcp-tls-ca-cert-path")] = None
    tls_server_name: Annotated[str | None, _setting("Name that the others' certificates must carry; the host of their address if not given.", "DYN_TCP_TLS_SERVER_NAME", flag="tcp-tls-server-name")] = None
    tls_verify_clients: Annotated[bool, _setting("Who calls must show a certificate, too.", "DYN_TCP_TLS_VERIFY_CLIENTS", flag="tcp-tls-verify-clients")] = False
# fmt: on


class TcpPlane(MultiplexPlane):
    def __init__(self, config: TcpConfig, context: PlaneContext) -> None:
        """Reads the certificates. Raises StartupError and ConfigError."""
        super().__init__(context.instance_id)
        self._config = config
        self._beat = Beat(config.heartbeat_secs, config.heartbeats_missed)
        self._tls = tls = _tls(config)
        self._server_tls = tls.server() if tls.serves else None
        self._client_tls = tls.client() if tls.serves or tls.ca is not None else None
        self._run_dir = context.run_dir
        self._path: Path | None = None
        self._own_folder: Path | None = None
        self._server: asyncio.Server | None = None

    async def _listen(self, accept: Callable[[], ServerConnection]) -> str:
        def accepted() -> ServerConnection:
            connection = accept()
            connection.beat = self._beat
            return connection

        return await self._listen_somewhere(accepted)

    async def _listen_somewhere(self, accept: Callable[[], ServerConnection]) -> str:
        if self._config.host is None and self._config.port is None:
            return await self._listen_unix(accept)
        return await self._listen_tcp(accept)

    async def _listen_unix(self, accept: Callable[[], ServerConnection]) -> str:
        path = self._socket_path()
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listener.bind(str(path))
            path.chmod(0o600)
            listener.setblocking(False)
            self._server = await asyncio.get_running_loop().create_unix_server(accept, sock=listener, backlog=_BACKLOG)
        except OSError as error:
            listener.close()
            reason = error.strerror or str(error)
            raise StartupError(f"cannot listen on {path}: {reason}; set DYN_RUN_DIR to another folder") from None
        self._path = path
        return f"unix:{path}"

    def _socket_path(self) -> Path:
        """In the run folder, or in a folder of its own where that path is too long for a socket."""
        name = f"{self._instance_id:x}.sock"
        path = Path(self._run_dir).absolute() / name
        if len(os.fsencode(path)) > _UNIX_PATH_BYTES:
            self._own_folder = Path(tempfile.mkdtemp(prefix="dynamo-"))
            path = self._own_folder / name
            if len(os.fsencode(path)) > _UNIX_PATH_BYTES:
                raise StartupError(f"{path} is too long for a socket (107 bytes): set DYN_RUN_DIR to a short path")
        return path

    async def _listen_tcp(self, accept: Callable[[], ServerConnection]) -> str:
        host, port = self._config.host or "127.0.0.1", self._config.port or 0
        loop = asyncio.get_running_loop()
        try:
            self._server = await loop.create_server(accept, host, port, backlog=_BACKLOG, ssl=self._server_tls)
        except OSError as error:
            text = f"cannot listen on {host}:{port}: {error.strerror or error}; change DYN_TCP_RPC_HOST or DYN_TCP_RPC_PORT"
            raise StartupError(text) from None
        port = self._server.sockets[0].getsockname()[1]
        scheme = "tcp" if self._server_tls is None else "tls"
        return f"{scheme}:{published_address(self._config.advertise, host, port)}"

    async def _dial(self, address: str, connection: ClientConnection) -> None:
        loop = asyncio.get_running_loop()
        connection.beat = self._beat
        kind, _, rest = address.partition(":")
        if kind == "unix":
            await loop.create_unix_connection(lambda: connection, rest)
        elif kind in {"tcp", "tls"}:
            host, _, port = rest.rpartition(":")
            context = self._trusting() if kind == "tls" else None
            name = (self._tls.server_name or host) if context is not None else None
            transport, _ = await loop.create_connection(lambda: connection, host, int(port), ssl=context, server_hostname=name)
            _detect_dead_hosts(transport)
        else:
            raise ValueError("the address begins with none of unix:, tcp: and tls:")

    def _trusting(self) -> ssl.SSLContext:
        if self._client_tls is None:
            self._client_tls = self._tls.client()
        return self._client_tls

    async def _stop_listening(self) -> None:
        if self._path is not None:
            self._path.unlink(missing_ok=True)
        if self._own_folder is not None:
            shutil.rmtree(self._own_folder, ignore_errors=True)
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()


def _detect_dead_hosts(transport: asyncio.BaseTransport) -> None:
    """The kernel's keepalive: it notices a host that is gone within about 10 s, and is not fooled by a process that is busy."""
    sock = transport.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 4), ("TCP_KEEPINTVL", 2), ("TCP_KEEPCNT", 3), ("TCP_USER_TIMEOUT", 10_000)):
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _tls(config: TcpConfig) -> Tls:
    return Tls(config.tls_ca, config.tls_cert, config.tls_key, config.tls_server_name, config.tls_verify_clients)


def _from_environment(config: TcpConfig) -> TcpConfig:
    host = config.host or os.environ.get("DYN_TCP_RPC_HOST") or None
    port = config.port
    if port is None and (text := os.environ.get("DYN_TCP_RPC_PORT")):
        port = port_of("DYN_TCP_RPC_PORT", text)
    advertise = config.advertise or os.environ.get("DYN_TCP_RPC_ADVERTISE") or None
    tls = tls_from(_tls(config), os.environ)
    return msgspec.structs.replace(
        config,
        host=host,
        port=port,
        advertise=advertise,
        tls_ca=tls.ca,
        tls_cert=tls.cert,
        tls_key=tls.key,
        tls_server_name=tls.server_name,
        tls_verify_clients=tls.verify_clients,
    )


@hookimpl
def dynamo_config() -> type[msgspec.Struct]:
    return TcpConfig


@hookimpl
def dynamo_request_planes() -> Iterable[RequestPlaneSpec]:
    yield RequestPlaneSpec(
        name="tcp",
        factory=lambda config, context: TcpPlane(_from_environment(config or TcpConfig()), context),
        description="Unix sockets on one host, TCP between hosts.",
    )
