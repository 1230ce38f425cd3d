"""What the frontend says about its requests: Prometheus series with Dynamo's names, and one log line each."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from functools import partial
from time import monotonic
from typing import Any, NamedTuple, Protocol, cast

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.registry import Collector

from dynamo_core.contracts.gate import RequestSummary
from dynamo_core.http.count import Count, CounterFamily, GaugeFamily
from dynamo_core.http.exchange import Exchange
from dynamo_core.http.histogram import Histogram, HistogramChild, log_buckets
from dynamo_core.http.route_debug import route_text
from dynamo_core.plugins import Faults
from dynamo_core.runtime.logging import PlainRecords
from dynamo_core.serving.record import RequestRecord
from dynamo_core.specs import MetricsContext

__all__ = ["UNKNOWN_MODEL", "AccessLog", "FrontendMetrics", "ModelSeries", "PluginMetrics", "PluginRegistry"]

_access = logging.getLogger("dynamo_core.access")

UNKNOWN_MODEL = "unknown_model"
"""The label of requests for models that nobody serves: clients must not be able to make series."""

_PROBES = frozenset({"/health", "/live", "/ready", "/metrics"})
_REJECTIONS = frozenset({429, 503, 529})
_ERROR_TYPES = {
    404: "not_found",
    429: "overload",
    499: "cancelled",
    501: "not_implemented",
    503: "unavailable",
    504: "response_timeout",
}

Observer = Callable[[RequestSummary], None]
Account = Callable[[Exchange, RequestSummary], None]


class PluginMetrics(Protocol):
    """The part of the compiled plugins that acts here."""

    @property
    def faults(self) -> Faults: ...

    def start_metrics(self, context: MetricsContext) -> Observer | None:
        """Returns what is to be told of finished requests; it never raises."""


class PluginRegistry(CollectorRegistry):
    """What plugins register on: the frontend's registry, with a memory of what is theirs."""

    def __init__(self, target: CollectorRegistry) -> None:
        super().__init__()
        self._target = target
        self._registered: list[Collector] = []

    def register(self, collector: Collector) -> None:
        self._target.register(collector)
        self._registered.append(collector)

    def unregister(self, collector: Collector) -> None:
        self._target.unregister(collector)
        self._registered.remove(collector)

    def collect(self) -> Iterable[Any]:
        return self._target.collect()

    def withdraw(self) -> None:
        """Take all of it off the scrape; its plugins may go on counting."""
        for collector in self._registered:
            self._target.unregister(collector)

    def restore(self) -> None:
        for collector in self._registered:
            self._target.register(collector)


class ModelSeries(NamedTuple):
    """The bound series of one model."""

    inflight: Count
    started: Count
    output_tokens: Count
    duration: HistogramChild
    input_length: HistogramChild
    output_length: HistogramChild
    cached: HistogramChild
    first_token: HistogramChild
    gap: HistogramChild


class FrontendMetrics:
    """The registry behind ``/metrics``. Everything but :meth:`series` children's ``observe`` costs once a request."""

    def __init__(self, prefix: str = "dynamo_frontend", registry: CollectorRegistry | None = None) -> None:
        self.prefix = prefix
        self.registry = registry or CollectorRegistry(auto_describe=True)
        self._requests = self._counter(
            "requests", "Requests by outcome.", "model", "endpoint", "request_type", "status", "error_type"
        )
        self._inflight = GaugeFamily(f"{prefix}_inflight_requests", "Requests now running.", ("model",), self.registry)
        self._output_tokens = self._counter("output_tokens", "Tokens generated.", "model")
        seconds, tokens = log_buckets(1, 512, 10), log_buckets(50, 128000, 12)
        self._duration = self._histogram("request_duration_seconds", "Arrival to end.", seconds)
        self._input = self._histogram("input_sequence_tokens", "Tokens of the prompt.", tokens)
        self._output = self._histogram("output_sequence_tokens", "Tokens generated.", log_buckets(50, 32000, 10))
        self._cached = self._histogram("cached_tokens", "Prompt tokens found in the prefix cache.", tokens)
        self._ttft = self._histogram("time_to_first_token_seconds", "Arrival to first token.", log_buckets(0.001, 480, 18))
        self._gap = self._histogram("inter_token_latency_seconds", "Token to token.", log_buckets(0.001, 80, 20))
        self._models: dict[str, ModelSeries] = {}
        self._started = self._counter("requests_started", "Requests for a model that is served.", "model")
        self._cancelled = self._counter("model_cancellation", "Requests that their client gave up.", "model")
        self._rejected = self._counter("model_rejection", "Requests refused because of limits or load.", "model")
        self.faults: list[Faults] = []
        """Of the compiled plugins, those of earlier ones first."""
        self._plugins: PluginRegistry | None = None
        ProcessCollector(registry=self.registry)

    def series(self, model: str) -> ModelSeries:
        found = self._models.get(model)
        if found is None:
            found = self._models[model] = ModelSeries(
                self._inflight.child(model),
                self._started.child(model),
                self._output_tokens.child(model),
                *(
                    family.child(model)
                    for family in (self._duration, self._input, self._output, self._cached, self._ttft, self._gap)
                ),
            )
        return found

    def start_plugins(self, plugins: PluginMetrics) -> Account:
        """Let plugins register their collectors in place of those that were here before. Returns what accounts for a request.

        Called for each application that is made: its requests are told to its own plugins. Raises
        :class:`~dynamo_core.errors.PluginError`, and nothing has changed then.
        """
        earlier, ours = self._plugins, PluginRegistry(self.registry)
        if earlier is not None:
            earlier.withdraw()
        try:
            observe = plugins.start_metrics(MetricsContext(registry=ours, prefix=self.prefix))
        except Exception:
            ours.withdraw()
            if earlier is not None:
                earlier.restore()
            raise
        self._plugins = ours
        self.faults.append(plugins.faults)
        return partial(self.finished, observe)

    def admitted(self, exchange: Exchange, model: str) -> None:
        """The request is for this model and runs from here on."""
        exchange.model = model
        series = self.series(model)
        series.started.add()
        series.inflight.add()

    def finished(self, observe: Observer | None, exchange: Exchange, summary: RequestSummary) -> None:
        """Account for one request. Called once a request, when its record closes."""
        label = exchange.model or UNKNOWN_MODEL
        if exchange.model is not None:
            self.series(label).inflight.add(-1)
        error_type = _error_type(summary)
        self._requests.child(
            label, summary.endpoint, "stream" if summary.stream else "unary", _status(error_type), error_type
        ).add()
        if summary.ttft is not None or summary.outcome == "completed":
            series = self.series(label)
            series.duration.observe(summary.duration)
            series.input_length.observe(summary.prompt_tokens)
            series.output_length.observe(summary.output_tokens)
            series.cached.observe(summary.cached_tokens)
            series.output_tokens.add(summary.output_tokens)
            if summary.ttft is not None:
                series.first_token.observe(summary.ttft)
        if summary.outcome == "cancelled":
            self._cancelled.child(label).add()
        elif summary.status in _REJECTIONS:
            self._rejected.child(label).add()
        if observe is not None:
            observe(summary)

    def _histogram(self, name: str, documentation: str, bounds: tuple[float, ...]) -> Histogram:
        return Histogram(f"{self.prefix}_{name}", documentation, bounds, self.registry)

    def _counter(self, name: str, documentation: str, *labels: str) -> CounterFamily:
        return CounterFamily(f"{self.prefix}_{name}", documentation, labels, self.registry)


def _error_type(summary: RequestSummary) -> str:
    if summary.outcome == "completed":
        return ""
    if summary.error == "overloaded":
        return "overload"
    return _ERROR_TYPES.get(summary.status, "validation" if summary.status < 500 else "internal")


def _status(error_type: str) -> str:
    return "error" if error_type else "success"


class AccessLog:
    """One INFO line an exchange; probes and scrapes are told at DEBUG."""

    def __init__(self) -> None:
        self._records = PlainRecords(_access)

    def __call__(self, exchange: Exchange) -> None:
        path = exchange.scope["path"]
        level = logging.DEBUG if path in _PROBES else logging.INFO
        if _access.isEnabledFor(level):
            self._records.log(level, self._line(exchange, path))

    def _line(self, exchange: Exchange, path: str) -> str:
        method = cast("Any", exchange.scope)["method"]
        record = exchange.record
        if record is None or record.summary is None:
            seconds = monotonic() - exchange.arrival
            return f"{method} {path} {exchange.status or 499} duration={seconds:.4f}s request={exchange.id}"
        return f"{method} {path} {_account(record, record.summary)}"


def _account(record: RequestRecord, summary: RequestSummary) -> str:
    ttft = "-" if summary.ttft is None else f"{summary.ttft:.4f}s"
    workers = ",".join(f"{worker:x}" for worker in dict.fromkeys(record.worker_ids)) or "-"
    error = f" error={summary.error}" if summary.error else ""
    route = f" route={route_text(record.routes).decode()}" if record.routes else ""
    return (
        f"{summary.status} model={summary.model or '-'} tokens={summary.prompt_tokens}+{summary.output_tokens}"
        f" cached={summary.cached_tokens} ttft={ttft} duration={summary.duration:.4f}s worker={workers}"
        f" outcome={summary.outcome}{error} request={summary.id}{route}"
    )
