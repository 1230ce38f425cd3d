"""Whether the servers behind discovery and the planes can be reached. Traffic goes on without them, so nothing else tells."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec
from prometheus_client import Metric
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

__all__ = ["StoreCollector", "StoreState", "outage_gauge", "state_of"]


class StoreState(msgspec.Struct, frozen=True, omit_defaults=True):
    provider: str
    """What serves as discovery or plane: ``etcd``, ``file`` …"""
    state: str
    """``up`` or ``out of reach``."""
    seconds: float = 0.0
    """How long it has been out of reach."""


def state_of(provider: str, part: Any) -> StoreState:
    """Of a discovery store or plane; one without a server of its own is always up."""
    since = getattr(part, "out_since", None)
    if since is None:
        return StoreState(provider, "up")
    return StoreState(provider, "out of reach", round(time.monotonic() - since, 1))


def outage_gauge(prefix: str, stores: Mapping[str, StoreState]) -> Metric:
    """1 for each part whose server is out of reach, 0 for the others; summed over processes, how many of them miss it."""
    name = f"{prefix}_store_out_of_reach"
    family = GaugeMetricFamily(name, "1 while the server behind it is out of reach.", labels=("part", "provider"))
    for part, store in stores.items():
        family.add_metric((part, store.provider), int(store.state != "up"))
    metric: Metric = family
    return metric


class StoreCollector(Collector):
    """:func:`outage_gauge` for a registry."""

    def __init__(self, prefix: str, stores: Callable[[], Mapping[str, StoreState]]) -> None:
        self._prefix = prefix
        self._stores = stores

    def describe(self) -> Iterable[Metric]:
        return [outage_gauge(self._prefix, {})]

    def collect(self) -> Iterable[Metric]:
        return [outage_gauge(self._prefix, self._stores())]
