"""Settings of the plugin, and what the environment adds to them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Annotated
from urllib.parse import urlsplit

import msgspec

from dynamo_core.errors import ConfigError

__all__ = ["NatsConfig", "from_environment"]

_DEFAULT_SERVER = "nats://127.0.0.1:4222"
_ENVIRONMENT = {
    "username": "NATS_AUTH_USERNAME",
    "password": "NATS_AUTH_PASSWORD",
    "token": "NATS_AUTH_TOKEN",
    "credentials": "NATS_AUTH_CREDENTIALS_FILE",
    "nkey": "NATS_AUTH_NKEY",
}


class NatsConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    servers: tuple[str, ...] = ()
    """``nats://host:port`` or ``tls://host:port``; empty: ``NATS_SERVER`` (comma-separated), else ``nats://127.0.0.1:4222``."""
    prefix: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*$")] = "dynamo"
    """Of every subject."""
    connect_timeout_secs: Annotated[float, msgspec.Meta(gt=0)] = 30.0
    """How long the start waits for NATS."""
    heartbeat_secs: Annotated[float, msgspec.Meta(gt=0, le=60)] = 0.5
    """A process that has requests running at another one asks after it this often, else a tenth as often."""
    peer_timeout_secs: Annotated[float, msgspec.Meta(gt=0)] = 15.0
    """A process that is silent this long is taken as lost, although NATS still knows it."""
    username: str | None = None
    """``None``: ``NATS_AUTH_USERNAME``."""
    password: str | None = None
    """``None``: ``NATS_AUTH_PASSWORD``."""
    token: str | None = None
    """``None``: ``NATS_AUTH_TOKEN``."""
    credentials: str | None = None
    """A credentials file (JWT); ``None``: ``NATS_AUTH_CREDENTIALS_FILE``. Needs ``pip install nkeys``."""
    nkey: str | None = None
    """File with an nkey's seed; ``None``: ``NATS_AUTH_NKEY``. Needs ``pip install nkeys``."""
    tls_ca: str | None = None
    """File with the certificates that are trusted; ``None``: the system's."""
    tls_cert: str | None = None
    """File with this process's own certificate."""
    tls_key: str | None = None
    """File with its key."""


def from_environment(config: NatsConfig, environ: Mapping[str, str] = os.environ) -> NatsConfig:
    """The same with nothing left open. Raises ConfigError."""
    servers = config.servers or tuple(name for part in environ.get("NATS_SERVER", "").split(",") if (name := part.strip()))
    given = {field: getattr(config, field) or environ.get(name) or None for field, name in _ENVIRONMENT.items()}
    if (config.tls_cert is None) != (config.tls_key is None):
        raise ConfigError("nats' tls_cert and tls_key belong together: set both or neither")
    return msgspec.structs.replace(config, servers=tuple(map(_checked, servers or (_DEFAULT_SERVER,))), **given)


def _checked(server: str) -> str:
    text = server if "://" in server else f"nats://{server}"
    parts = urlsplit(text)
    try:
        sound = parts.scheme in {"nats", "tls"} and bool(parts.hostname) and parts.port != 0 and not parts.path.strip("/")
    except ValueError:
        sound = False
    if not sound:
        raise ConfigError(f"{server!r} is no address of a NATS server: write nats://host:port")
    return text if parts.port else f"{text}:4222"
