"""Prometheus counters and gauges for one thread: an addition each (0.03 µs where the client library's take 0.3)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector, CollectorRegistry

__all__ = ["Count", "CounterFamily", "GaugeFamily"]


class Count:
    """One series. Bound once, then changed on the event loop's thread."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0

    def add(self, amount: int = 1) -> None:
        self.value += amount


class _Family(Collector):
    _kind: type[CounterMetricFamily | GaugeMetricFamily]

    def __init__(self, name: str, documentation: str, labels: Sequence[str], registry: CollectorRegistry) -> None:
        self._name = name
        self._documentation = documentation
        self._labels = tuple(labels)
        self._children: dict[tuple[str, ...], Count] = {}
        registry.register(self)

    def child(self, *values: str) -> Count:
        """The series with these label values."""
        found = self._children.get(values)
        if found is None:
            found = self._children[values] = Count()
        return found

    def describe(self) -> Iterable[CounterMetricFamily | GaugeMetricFamily]:
        return [self._kind(self._name, self._documentation, labels=self._labels)]

    def collect(self) -> Iterable[CounterMetricFamily | GaugeMetricFamily]:
        family = self._kind(self._name, self._documentation, labels=self._labels)
        for values, count in self._children.items():
            family.add_metric(values, count.value)
        return [family]


class CounterFamily(_Family):
    """Its name gets ``_total``."""

    _kind = CounterMetricFamily


class GaugeFamily(_Family):
    _kind = GaugeMetricFamily
