"""Settings of the plugin, and what the environment adds to them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Annotated
from urllib.parse import urlsplit

import msgspec

from dynamo_core.errors import ConfigError

__all__ = ["Address", "EtcdConfig", "Options", "from_environment"]

_DEFAULT_ENDPOINT = "http://127.0.0.1:2379"
_DEFAULT_CONNECT_SECONDS = 30.0


class EtcdConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    endpoints: tuple[str, ...] = ()
    """Addresses, ``http://host:port`` or ``https://host:port``; empty: ``ETCD_ENDPOINTS`` (comma-separated), else
    ``http://127.0.0.1:2379``."""
    prefix: Annotated[str, msgspec.Meta(min_length=1)] = "dynamo/"
    """Of every key: deployments that share an etcd differ in it."""
    lease_ttl_secs: Annotated[int, msgspec.Meta(ge=2, le=3600)] = 10
    """After a process died without a word its keys stay this long."""
    connect_timeout_secs: Annotated[float, msgspec.Meta(gt=0)] | None = None
    """How long the start waits for etcd; ``None``: ``ETCD_STARTUP_CONNECT_TIMEOUT_SECONDS``, else 30."""
    username: str | None = None
    """``None``: ``ETCD_AUTH_USERNAME``."""
    password: str | None = None
    """``None``: ``ETCD_AUTH_PASSWORD``."""
    tls_ca: str | None = None
    """File with the certificates that are trusted; ``None``: ``ETCD_AUTH_CA``, else the system's."""
    tls_cert: str | None = None
    """File with this process's own certificate; ``None``: ``ETCD_AUTH_CLIENT_CERT``, else none is shown."""
    tls_key: str | None = None
    """File with its key; ``None``: ``ETCD_AUTH_CLIENT_KEY``."""
    tls_server_name: str | None = None
    """Name that the servers' certificates must carry; ``None``: the host of the address."""


class Address(msgspec.Struct, frozen=True):
    target: str
    """``host:port``."""
    tls: bool

    def __str__(self) -> str:
        return f"{'https' if self.tls else 'http'}://{self.target}"


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """Settings with nothing left open."""

    addresses: tuple[Address, ...]
    prefix: str
    ttl: int
    connect_seconds: float
    user: tuple[str, str] | None
    tls_ca: str | None
    tls_cert: str | None
    tls_key: str | None
    tls_server_name: str | None

    @property
    def where(self) -> str:
        """The addresses, for messages."""
        return ", ".join(map(str, self.addresses))


def from_environment(config: EtcdConfig, environ: Mapping[str, str] = os.environ) -> Options:
    """Raises ConfigError."""
    names = config.endpoints or tuple(
        name for part in environ.get("ETCD_ENDPOINTS", "").split(",") if (name := part.strip())
    )  # fmt: skip
    username = config.username or environ.get("ETCD_AUTH_USERNAME") or None
    password = config.password or environ.get("ETCD_AUTH_PASSWORD") or None
    if (username is None) != (password is None):
        raise ConfigError("etcd's user name and password belong together: set both or neither")
    cert = config.tls_cert or environ.get("ETCD_AUTH_CLIENT_CERT") or None
    key = config.tls_key or environ.get("ETCD_AUTH_CLIENT_KEY") or None
    if (cert is None) != (key is None):
        raise ConfigError("etcd's tls_cert and tls_key belong together: set both or neither")
    return Options(
        addresses=tuple(_parse(name) for name in names or (_DEFAULT_ENDPOINT,)),
        prefix=config.prefix,
        ttl=config.lease_ttl_secs,
        connect_seconds=config.connect_timeout_secs or _seconds(environ, "ETCD_STARTUP_CONNECT_TIMEOUT_SECONDS"),
        user=(username, password) if username is not None and password is not None else None,
        tls_ca=config.tls_ca or environ.get("ETCD_AUTH_CA") or None,
        tls_cert=cert,
        tls_key=key,
        tls_server_name=config.tls_server_name,
    )


def _parse(text: str) -> Address:
    parts = urlsplit(text if "://" in text else f"http://{text}")
    try:
        port = parts.port
    except ValueError:
        port = None
    plain = not parts.path.strip("/") and not parts.query and parts.username is None
    if parts.scheme not in {"http", "https"} or not parts.hostname or not port or not plain:
        raise ConfigError(f"{text!r} is no address of an etcd: write http://host:port or https://host:port")
    return Address(parts.netloc, parts.scheme == "https")


def _seconds(environ: Mapping[str, str], name: str) -> float:
    text = environ.get(name)
    if not text:
        return _DEFAULT_CONNECT_SECONDS
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise ConfigError(f"{name} is {text!r}: give a number of seconds above 0")
    return seconds
