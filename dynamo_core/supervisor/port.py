"""The HTTP port that all frontends of one run share."""

from __future__ import annotations

import errno
import os
import socket
from typing import Any, TypeAlias

from dynamo_core.errors import StartupError

__all__ = ["PortReservation", "listening_socket", "reserve_port"]

_Address: TypeAlias = tuple[Any, ...]
"""Host and port, and two more numbers with IPv6, as :mod:`socket` has it."""


class PortReservation:
    """A port that belongs to this run: frontends may come and go without anybody else taking it."""

    def __init__(self, host: str, port: int, holder: socket.socket, scheme: str = "http") -> None:
        self._scheme = scheme
        self.host = host
        self.port = port
        self._holder = holder

    def close(self) -> None:
        self._holder.close()

    @property
    def url(self) -> str:
        """Where a client on this host can go; an address that means "all" is not one to connect to."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(self.host, self.host)  # noqa: S104 - compared, not bound
        return f"{self._scheme}://[{host}]:{self.port}" if ":" in host else f"{self._scheme}://{host}:{self.port}"


def reserve_port(host: str, port: int, *, scheme: str = "http") -> PortReservation:
    """Take the port, 0 meaning any free one. Raises :class:`StartupError` when somebody has it.

    Binding once without ``SO_REUSEPORT`` is what notices another server, even one of our own. Afterwards a bound socket that
    never listens keeps the port: it gets no connections, and only sockets with ``SO_REUSEPORT`` of the same user can join it.
    """
    family, address = _resolve(host, port)
    with _bound(family, address, reuse_address=True, reuse_port=False) as probe:
        address = (address[0], probe.getsockname()[1], *address[2:])
    try:
        holder = _bound(family, address, reuse_address=False, reuse_port=True)
    except StartupError:  # connections of an earlier server, closed a moment ago, still linger on the port
        holder = _bound(family, address, reuse_address=True, reuse_port=True)
    return PortReservation(host, address[1], holder, scheme)


def listening_socket(host: str, port: int, *, backlog: int, shared: bool) -> socket.socket:
    """A socket that listens; with ``shared``, beside others of this run."""
    sock = _bound(*_resolve(host, port), reuse_address=True, reuse_port=shared)
    try:
        sock.listen(backlog)
    except OSError as error:
        sock.close()
        raise StartupError(_sentence(host, port, error)) from None
    sock.setblocking(False)
    return sock


def _resolve(host: str, port: int) -> tuple[socket.AddressFamily, _Address]:
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError):
        raise StartupError(f"The address {host!r} cannot be resolved: name one of this machine with --http-host.") from None
    family, _, _, _, address = found[0]
    return family, address


def _bound(family: socket.AddressFamily, address: _Address, *, reuse_address: bool, reuse_port: bool) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, reuse_address)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, reuse_port)
        sock.bind(address)
    except OSError as error:
        sock.close()
        raise StartupError(_sentence(address[0], address[1], error)) from None
    return sock


def _sentence(host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"Port {port} on {host} is in use by another program: choose another with --http-port, or 0 for any free one."
    if error.errno == errno.EACCES:
        return f"Port {port} on {host} needs privileges that you do not have: choose one above 1023 with --http-port."
    if error.errno == errno.EADDRNOTAVAIL:
        return f"The address {host} is not one of this machine: choose another with --http-host, 0.0.0.0 for all."
    return f"Listening on {host}:{port} failed ({os.strerror(error.errno or 0)}): choose others with --http-host and --http-port."
