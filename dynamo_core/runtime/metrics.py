"""What the endpoints of a process count, in Prometheus' text format."""

from __future__ import annotations

import logging
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from dynamo_core.errors import ConfigError

__all__ = ["EndpointMetrics", "RuntimeMetrics"]

_log = logging.getLogger(__name__)

_PREFIX = "dynamo_component"
_OWN_LABELS = ("dynamo_namespace", "dynamo_component", "dynamo_endpoint")
_BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)


class EndpointMetrics:
    """The account of one endpoint: plain numbers, written by its handler on the event loop."""

    def __init__(self, path: str, labels: Sequence[tuple[str, str]] = ()) -> None:
        own = dict(zip(_OWN_LABELS, path.split("."), strict=True))
        taken = [name for name, _ in labels if name in own]
        if taken or len({name for name, _ in labels}) != len(labels):
            name = taken[0] if taken else "one of them"
            raise ConfigError(f"metrics_labels of {path}: {name} would stand twice on each series; rename it")
        self.labels: dict[str, str] = {**own, **{str(name): str(value) for name, value in labels}}
        self.requests = 0
        self.inflight = 0
        self.errors: dict[str, int] = {}
        """By the exception's name."""
        self.buckets = [0] * (len(_BOUNDS) + 1)
        self.seconds = 0.0

    def began(self) -> float:
        self.requests += 1
        self.inflight += 1
        return time.perf_counter()

    def ended(self, began: float, error: str | None) -> None:
        self.inflight -= 1
        elapsed = time.perf_counter() - began
        self.seconds += elapsed
        self.buckets[bisect_left(_BOUNDS, elapsed)] += 1
        if error is not None:
            self.errors[error] = self.errors.get(error, 0) + 1


class RuntimeMetrics(Collector):
    """All endpoints of one process, and what handlers add of their own. ``further`` makes more families, at each scrape."""

    def __init__(self, further: Callable[[], Iterable[Metric]] = tuple) -> None:
        self._further = further
        self._endpoints: list[EndpointMetrics] = []
        self._callbacks: list[Callable[[], str]] = []
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def add(self, endpoint: EndpointMetrics) -> None:
        self._endpoints = [known for known in self._endpoints if known.labels != endpoint.labels] + [endpoint]

    def register_prometheus_expfmt_callback(self, callback: Callable[[], str]) -> None:
        """``callback()`` gives more text in the exposition format; called at each scrape, on the event loop."""
        self._callbacks.append(callback)

    def text(self) -> bytes:
        """The exposition. A callback that raises, or repeats a metric that is there already, is left out with a log line."""
        text = generate_latest(self._registry).decode()
        known = set(_names(text))
        for callback in self._callbacks:
            try:
                more = callback()
            except Exception:  # noqa: BLE001  # one handler's bug must not hide the others' series
                _log.exception("a metrics callback failed")
                continue
            names = set(_names(more))
            if twice := names & known:
                _log.error("metrics of a callback are left out: %s would be told twice; rename it", min(twice))
                continue
            known |= names
            text += more if more.endswith("\n") else f"{more}\n"
        return text.encode()

    def collect(self) -> Iterable[Metric]:
        names = tuple(dict.fromkeys(name for endpoint in self._endpoints for name in endpoint.labels))
        requests = CounterMetricFamily(f"{_PREFIX}_requests", "Requests begun.", labels=names)
        inflight = GaugeMetricFamily(f"{_PREFIX}_inflight_requests", "Requests that run.", labels=names)
        errors = CounterMetricFamily(f"{_PREFIX}_errors", "Requests that failed.", labels=(*names, "error_type"))
        duration = HistogramMetricFamily(f"{_PREFIX}_request_duration_seconds", "From request to last item.", labels=names)
        for endpoint in self._endpoints:
            values = [endpoint.labels.get(name, "") for name in names]
            requests.add_metric(values, endpoint.requests)
            inflight.add_metric(values, endpoint.inflight)
            duration.add_metric(values, list(_cumulative(endpoint.buckets)), endpoint.seconds)
            for error, count in endpoint.errors.items():
                errors.add_metric([*values, error], count)
        return (requests, inflight, errors, duration, *self._further())


def _cumulative(buckets: Sequence[int]) -> Iterator[tuple[str, float]]:
    total = 0
    for bound, count in zip((*map(str, _BOUNDS), "+Inf"), buckets, strict=True):
        total += count
        yield bound, float(total)


def _names(text: str) -> Iterator[str]:
    return (line.split(None, 3)[2] for line in text.splitlines() if line.startswith("# TYPE "))
