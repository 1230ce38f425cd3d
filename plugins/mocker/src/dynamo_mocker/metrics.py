"""The mocker's series under the names that vLLM gives them, so that dashboards, autoscalers and load readers work on both."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric

from dynamo_core.kv import scheduler

__all__ = ["Counts", "Histogram", "MockerMetrics"]

_LABELS = ["model_name", "engine"]
_TTFT = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0)
_ITL = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0)
_E2E = (0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0)


class Histogram:
    """Counts by upper bound; ``observe`` takes a weight, so a step that gives 256 streams a token is one call."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        self.counts[bisect_left(self.bounds, value)] += times
        self.total += value * times

    def buckets(self) -> list[tuple[str, float]]:
        """Cumulative, as Prometheus wants them."""
        names = [*map(str, self.bounds), "+Inf"]
        running = 0
        rows: list[tuple[str, float]] = []
        for name, count in zip(names, tuple(self.counts), strict=True):
            running += count
            rows.append((name, running))
        return rows


class Counts:
    """What the engine counts; written by its event loop, read by any thread."""

    __slots__ = ("cached", "e2e", "finished", "generated", "itl", "preemptions", "prompt", "ttft")

    def __init__(self) -> None:
        self.prompt = self.cached = self.generated = self.preemptions = 0
        self.finished: dict[str, int] = {"stop": 0, "length": 0, "abort": 0}
        self.ttft, self.itl, self.e2e = Histogram(_TTFT), Histogram(_ITL), Histogram(_E2E)


class MockerMetrics:
    """A Prometheus collector over the engine's plain integers; nothing happens until it is scraped. One sample a rank."""

    def __init__(self, model_name: str, ranks: Sequence[tuple[Counts, scheduler.Scheduler]]) -> None:
        self._ranks = [
            ({"model_name": model_name, "engine": str(rank)}, counts, schedule) for rank, (counts, schedule) in enumerate(ranks)
        ]
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def render(self) -> bytes:
        """Prometheus text."""
        return generate_latest(self._registry)

    def collect(self) -> Iterable[Metric]:
        gauge, counter, histogram = self._gauge, self._counter, self._histogram
        yield gauge("vllm:num_requests_running", "Sequences that hold KV blocks.", lambda s: len(s.running))
        yield gauge("vllm:num_requests_waiting", "Sequences that wait for a place.", lambda s: len(s.waiting))
        yield gauge("vllm:kv_cache_usage_perc", "KV blocks held, 1 is all.", _usage)
        yield gauge("vllm:gpu_cache_usage_perc", "KV blocks held, 1 is all (the older name).", _usage)
        yield counter("vllm:num_preemptions", "Sequences that lost their blocks and started over.", lambda c: c.preemptions)
        yield counter("vllm:prompt_tokens", "Prompt tokens, cached ones included.", lambda c: c.prompt)
        yield counter("vllm:generation_tokens", "Tokens emitted.", lambda c: c.generated)
        yield counter("vllm:prefix_cache_queries", "Prompt tokens looked up in the prefix cache.", lambda c: c.prompt)
        yield counter("vllm:prefix_cache_hits", "Prompt tokens found in the prefix cache.", lambda c: c.cached)
        yield self._finished()
        yield self._config()
        yield histogram("vllm:time_to_first_token_seconds", "From arrival to the first token.", lambda c: c.ttft)
        yield histogram("vllm:inter_token_latency_seconds", "Between two tokens of a sequence.", lambda c: c.itl)
        yield histogram("vllm:e2e_request_latency_seconds", "From arrival to the last token.", lambda c: c.e2e)

    def _gauge(self, name: str, doc: str, value: Callable[[scheduler.Scheduler], float]) -> Metric:
        family = GaugeMetricFamily(name, doc, labels=_LABELS)
        for labels, _, schedule in self._ranks:
            family.add_metric(list(labels.values()), value(schedule))
        return family

    def _counter(self, name: str, doc: str, value: Callable[[Counts], float]) -> Metric:
        family = CounterMetricFamily(name, doc, labels=_LABELS)
        for labels, counts, _ in self._ranks:
            family.add_metric(list(labels.values()), value(counts))
        return family

    def _histogram(self, name: str, doc: str, value: Callable[[Counts], Histogram]) -> Metric:
        family = HistogramMetricFamily(name, doc, labels=_LABELS)
        for labels, counts, _ in self._ranks:
            family.add_metric(list(labels.values()), value(counts).buckets(), value(counts).total)
        return family

    def _finished(self) -> Metric:
        family = CounterMetricFamily("vllm:request_success", "Sequences by how they ended.", labels=[*_LABELS, "finished_reason"])
        for labels, counts, _ in self._ranks:
            for reason, count in counts.finished.items():
                family.add_metric([*labels.values(), reason], count)
        return family

    def _config(self) -> Metric:
        names = [*_LABELS, "block_size", "num_gpu_blocks", "enable_prefix_caching"]
        family = GaugeMetricFamily("vllm:cache_config_info", "The cache's shape, as labels.", labels=names)
        for labels, _, schedule in self._ranks:
            blocks = schedule.blocks
            shape = (str(schedule.limits.block_size), str(blocks.total), str(blocks.caching))
            family.add_metric([*labels.values(), *shape], 1)
        return family


def _usage(schedule: scheduler.Scheduler) -> float:
    return schedule.blocks.used / schedule.blocks.total
