"""Addresses as other hosts are to use them."""

from __future__ import annotations

import socket

from dynamo_core.errors import StartupError

__all__ = ["port_of", "published_address"]


def published_address(advertise: str | None, host: str, port: int) -> str:
    """``host:port`` as others are to dial it. An IPv6 address has no brackets: the port stands after the last colon.

    ``advertise`` is a host, or host and port (``[fd00::7]:9000``), in place of those that are listened on.
    """
    if advertise is None:
        if host in {"0.0.0.0", "::", "*", ""}:  # noqa: S104  # compared, not bound
            host = socket.gethostname()
        return f"{host}:{port}"
    if advertise.startswith("["):
        name, _, own_port = advertise[1:].partition("]")
        return f"{name}:{own_port.removeprefix(':') or port}"
    return advertise if advertise.count(":") == 1 else f"{advertise}:{port}"


def port_of(name: str, text: str) -> int:
    """The port that the environment variable ``name`` holds. Raises StartupError."""
    if not text.isascii() or not text.isdigit() or int(text) > 65535:
        raise StartupError(f"{name} is {text!r}: give a port number between 0 and 65535")
    return int(text)
