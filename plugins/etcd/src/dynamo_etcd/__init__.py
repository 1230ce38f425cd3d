"""Plugin ``etcd``: discovery for processes of many hosts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from dynamo_core.hookspecs import hookimpl
from dynamo_core.specs import DiscoverySpec, PlaneContext
from dynamo_etcd.options import EtcdConfig

__all__ = ["EtcdConfig", "dynamo_config", "dynamo_discovery"]


def _make(config: Any, _context: PlaneContext) -> Any:
    from dynamo_etcd.options import from_environment
    from dynamo_etcd.store import EtcdDiscovery

    return EtcdDiscovery(from_environment(config or EtcdConfig()))


@hookimpl
def dynamo_config() -> type[msgspec.Struct]:
    return EtcdConfig


@hookimpl
def dynamo_discovery() -> Iterable[DiscoverySpec]:
    yield DiscoverySpec(name="etcd", factory=_make, description="etcd 3.4 or later, for processes of many hosts.")
