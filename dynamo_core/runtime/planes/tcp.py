"""Plugin ``tcp``: the request plane over Unix sockets on one host, or over TCP between hosts.

The listener is a Unix socket in the run folder unless ``DYN_TCP_RPC_HOST`` or ``[plugins.tcp] host`` names an address. TCP
carries no authentication: it belongs on a network that only the deployment's own machines reach.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec

from dynamo_core.errors import StartupError
from dynamo_core.hookspecs import hookimpl
from dynamo_core.runtime.planes.client import ClientConnection
from dynamo_core.runtime.planes.multiplex import MultiplexPlane
from dynamo_core.runtime.planes.server import ServerConnection
from dynamo_core.specs import PlaneContext, RequestPlaneSpec

__all__ = ["TcpConfig", "TcpPlane", "dynamo_config", "dynamo_request_planes"]

_UNIX_PATH_BYTES = 107
_BACKLOG = 512


class TcpConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    host: str | None = None
    """Address to listen on; ``None``: ``DYN_TCP_RPC_HOST``, else a Unix socket."""
    port: int | None = None
    """Port to listen on; ``None``: ``DYN_TCP_RPC_PORT``, else a free one."""
    advertise: str | None = None
    """Host to publish; ``None``: ``host``, or this machine's name when that is a wildcard."""


class TcpPlane(MultiplexPlane):
    def __init__(self, config: TcpConfig, context: PlaneContext) -> None:
        super().__init__(context.instance_id)
        self._config = config
        self._run_dir = context.run_dir
        self._path: Path | None = None
        self._own_folder: Path | None = None
        self._server: asyncio.Server | None = None

    async def _listen(self, accept: Callable[[], ServerConnection]) -> str:
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
        try:
            self._server = await asyncio.get_running_loop().create_server(accept, host, port, backlog=_BACKLOG)
        except OSError as error:
            text = f"cannot listen on {host}:{port}: {error.strerror or error}; change DYN_TCP_RPC_HOST or DYN_TCP_RPC_PORT"
            raise StartupError(text) from None
        port = self._server.sockets[0].getsockname()[1]
        if self._config.advertise is not None:
            host = self._config.advertise
        elif host in {"0.0.0.0", "::", ""}:  # noqa: S104  # compared, not bound
            host = socket.gethostname()
        return f"tcp:{host}:{port}"

    async def _dial(self, address: str, connection: ClientConnection) -> None:
        loop = asyncio.get_running_loop()
        kind, _, rest = address.partition(":")
        if kind == "unix":
            await loop.create_unix_connection(lambda: connection, rest)
        elif kind == "tcp":
            host, _, port = rest.rpartition(":")
            transport, _ = await loop.create_connection(lambda: connection, host, int(port))
            _detect_dead_hosts(transport)
        else:
            raise ValueError("the address begins neither with unix: nor with tcp:")

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


def _from_environment(config: TcpConfig) -> TcpConfig:
    host = config.host or os.environ.get("DYN_TCP_RPC_HOST") or None
    port = config.port
    if port is None and (text := os.environ.get("DYN_TCP_RPC_PORT")):
        if not text.isascii() or not text.isdigit() or int(text) > 65535:
            raise StartupError(f"DYN_TCP_RPC_PORT is {text!r}: give a port number between 0 and 65535")
        port = int(text)
    return msgspec.structs.replace(config, host=host, port=port)


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
