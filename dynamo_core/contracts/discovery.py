"""The store that says which instances and model cards exist."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable
from typing import NamedTuple, Protocol, TypeAlias

import msgspec

__all__ = ["Deleted", "Discovery", "DiscoveryEvent", "Instance", "Put", "Synced", "Transport"]


class Transport(NamedTuple):
    kind: str
    """Of the request plane: ``tcp``, ``nats``."""
    address: str


class Instance(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One live server of an endpoint."""

    instance_id: int
    namespace: str
    component: str
    endpoint: str
    address: str
    """Of the request plane: ``unix:/path``, ``tcp:host:port`` or what the plane's plugin understands."""
    request_plane: str = "tcp"
    events: str = ""
    """Where the instance publishes its events, in the event plane's own terms; empty: nowhere."""
    host: str = ""
    pid: int = 0

    @property
    def transport(self) -> Transport:
        """As Dynamo shows it."""
        return Transport(self.request_plane, self.address)


class Put(msgspec.Struct, frozen=True):
    key: str
    value: bytes


class Deleted(msgspec.Struct, frozen=True):
    key: str


class Synced(msgspec.Struct, frozen=True):
    """Everything that existed when the watch began has been told (again after each reconnection)."""


DiscoveryEvent: TypeAlias = Put | Deleted | Synced


class Discovery(Protocol):
    """A small key-value store with leases. Keys are paths (``instances/ns/comp/ep/1f``), values at most 1 MiB.

    Everything put through one Discovery object lives under one lease: it disappears when the process dies, at the latest
    when the lease lapses. A store that is out of reach for a while is the implementation's business: it puts everything
    again when it is back, and watchers keep the last known state.
    """

    def start(self) -> Awaitable[None]:
        """Connect. Raises :class:`~dynamo_core.errors.StartupError` that names the address when that is hopeless."""
        ...

    def put(self, key: str, value: bytes) -> Awaitable[None]: ...

    def delete(self, key: str) -> Awaitable[None]:
        """Deleting what is not there is no error."""
        ...

    def get_prefix(self, prefix: str) -> Awaitable[dict[str, bytes]]: ...

    def watch(self, prefix: str) -> AsyncIterator[DiscoveryEvent]:
        """What is there, then :class:`Synced`, then every change; what vanished during an outage is told as :class:`Deleted`. A
        slow watcher may be told only the latest change of a key. Cancel the iteration to end it. Raises
        :class:`~dynamo_core.errors.CannotConnect` when the store does not say within reasonable time what is there."""
        ...

    def close(self) -> Awaitable[None]:
        """Drop the lease and with it every key that was put."""
        ...

    # Optional, of stores with a server of their own (and of planes with one):
    #   @property
    #   def out_since(self) -> float | None             time.monotonic() since which the server is out of reach; None: it is not
