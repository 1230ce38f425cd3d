"""What a scrape reads from the serving pipeline: nothing here costs a request anything."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from dynamo_core.contracts import ModelCard, WorkerView
from dynamo_core.plugins import Faults
from dynamo_core.serving.dispatch import HIT_RATE_STEPS, DispatchCounters
from dynamo_core.serving.prompt_encoder import PromptCacheCounters, PromptEncoder

__all__ = ["ModelCollector", "ObservedModel"]

_ROUTER = "dynamo_component_router"


class ObservedModel(Protocol):
    """The part of :class:`~dynamo_core.serving.served_model.ServedModel` that is told."""

    name: str
    card: ModelCard

    @property
    def ready(self) -> bool: ...

    @property
    def waiting(self) -> int: ...

    @property
    def counters(self) -> DispatchCounters: ...

    @property
    def workers(self) -> Mapping[int, WorkerView]: ...

    prompt_encoder: PromptEncoder


class ModelCollector(Collector):
    """Queues, migrations, model facts and worker loads of every model; and what plugins did wrong."""

    def __init__(
        self, prefix: str, models: Callable[[], Sequence[ObservedModel]], faults: Sequence[Faults], migrations: int
    ) -> None:
        self._prefix = prefix
        self._models = models
        self._faults = faults
        self._migration_limit = migrations

    def describe(self) -> Iterable[Metric]:
        return self._families(())

    def collect(self) -> Iterable[Metric]:
        return self._families(self._models())

    def _families(self, models: Sequence[ObservedModel]) -> list[Metric]:
        return [
            *self._state(models),
            *self._facts(models),
            *self._loads(models),
            *self._routing(models),
            *self._tokenizing(models),
            self._plugin_faults(),
        ]

    def _state(self, models: Sequence[ObservedModel]) -> Iterable[Metric]:
        queued = self._gauge("queued_requests", "Requests that the router holds back.")
        ready = self._gauge("model_ready", "1 while a worker takes requests of the model.")
        migrated = self._counter("model_migration", "Streams continued on another worker.")
        stranded = self._counter("model_migration_failures", "Streams lost with their worker.")
        too_long = self._counter("model_migration_max_seq_len_exceeded", "Those that were too long to be continued on another.")
        for model in models:
            queued.add_metric((model.name,), model.waiting)
            ready.add_metric((model.name,), int(model.ready))
            migrated.add_metric((model.name,), model.counters.migrated)
            stranded.add_metric((model.name,), model.counters.stranded)
            too_long.add_metric((model.name,), model.counters.too_long)
        return queued, ready, migrated, stranded, too_long

    def _facts(self, models: Sequence[ObservedModel]) -> Iterable[Metric]:
        facts: dict[str, tuple[str, Callable[[ModelCard], float]]] = {
            "model_total_kv_blocks": ("KV blocks of one worker.", lambda card: card.total_kv_blocks),
            "model_max_num_seqs": ("Sequences that one worker runs at a time.", lambda card: card.max_num_seqs),
            "model_max_num_batched_tokens": ("Tokens of one step of a worker.", lambda card: card.max_num_batched_tokens),
            "model_context_length": ("Tokens of prompt and output together.", lambda card: card.context_length),
            "model_kv_cache_block_size": ("Tokens of one KV block.", lambda card: card.block_size),
            "model_migration_limit": ("How often a request may move.", lambda _card: self._migration_limit),
        }
        for name, (documentation, read) in facts.items():
            family = self._gauge(name, documentation)
            for model in models:
                family.add_metric((model.name,), read(model.card) or 0)
            yield family

    def _loads(self, models: Sequence[ObservedModel]) -> Iterable[Metric]:
        loads: dict[str, tuple[str, str]] = {
            "worker_active_decode_blocks": ("KV blocks in use, as the worker last said.", "kv_used_blocks"),
            "worker_active_prefill_tokens": ("Prompt tokens that wait or run, as the worker last said.", "prefill_tokens"),
            "worker_running_requests": ("Sequences in the engine, as the worker last said.", "running"),
            "worker_waiting_requests": ("Sequences in the engine's queue, as the worker last said.", "waiting"),
        }
        for name, (documentation, field) in loads.items():
            family = GaugeMetricFamily(f"{self._prefix}_{name}", documentation, labels=("model", "worker_id"))
            for model in models:
                for worker in model.workers.values():
                    if worker.load is not None:
                        family.add_metric((model.name, f"{worker.id:x}"), getattr(worker.load, field))
            yield family

    def _routing(self, models: Sequence[ObservedModel]) -> Iterable[Metric]:
        routed = CounterMetricFamily(f"{_ROUTER}_requests", "Requests given to a worker, migrations too.", labels=("model",))
        rates = HistogramMetricFamily(
            f"{_ROUTER}_kv_hit_rate", "Share of the prompt that the router believed cached on its worker.", labels=("model",)
        )
        for model in models:
            counters = model.counters
            routed.add_metric((model.name,), counters.routed)
            rates.add_metric((model.name,), _buckets(counters.hit_rates), counters.hit_rate_sum)
        return routed, rates

    def _tokenizing(self, models: Sequence[ObservedModel]) -> Iterable[Metric]:
        series: dict[str, tuple[str, Callable[[PromptCacheCounters], int]]] = {
            "hits": ("Prompts of which a part was tokenized before.", lambda counters: counters.hits),
            "misses": ("Prompts of which nothing was.", lambda counters: counters.misses),
            "cached_tokens": ("Tokens of prompts that were remembered.", lambda counters: counters.reused_tokens),
            "uncached_tokens": ("Tokens of prompts that were made.", lambda counters: counters.encoded_tokens),
        }
        for name, (documentation, read) in series.items():
            family = self._counter(f"tokenizer_cache_{name}", documentation)
            for model in models:
                family.add_metric((model.name,), read(model.prompt_encoder.counters))
            yield family
        taken = self._gauge("tokenizer_cache_bytes", "Memory that remembered prompts take.")
        for model in models:
            taken.add_metric((model.name,), model.prompt_encoder.counters.bytes)
        yield taken

    def _plugin_faults(self) -> Metric:
        family: Any = CounterMetricFamily(f"{self._prefix}_plugin_faults", "Exceptions of plugins.", labels=("plugin", "hook"))
        totals: dict[tuple[str, str], int] = {}
        for faults in self._faults:
            for key, count in faults.counts.items():
                totals[key] = totals.get(key, 0) + count
        for key, count in totals.items():
            family.add_metric(key, count)
        metric: Metric = family
        return metric

    def _gauge(self, name: str, documentation: str) -> GaugeMetricFamily:
        return GaugeMetricFamily(f"{self._prefix}_{name}", documentation, labels=("model",))

    def _counter(self, name: str, documentation: str) -> CounterMetricFamily:
        return CounterMetricFamily(f"{self._prefix}_{name}", documentation, labels=("model",))


def _buckets(counts: Sequence[int]) -> list[tuple[str, float]]:
    buckets: list[tuple[str, float]] = []
    running = 0
    for step, count in enumerate(counts):
        running += count
        buckets.append((repr(step / HIT_RATE_STEPS), running))
    buckets.append(("+Inf", running))
    return buckets
