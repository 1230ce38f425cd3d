"""Series beside those of the HTTP tests: plugins that come and go, cancellations, what a scrape reads from the pipeline."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Counter
from prometheus_client.parser import text_string_to_metric_families

from dynamo_core.contracts import EngineLoad, ModelCard, WorkerView
from dynamo_core.http.model_series import ModelCollector
from dynamo_core.http.observe import FrontendMetrics
from dynamo_core.plugins import Faults
from dynamo_core.runtime.exposition import render
from dynamo_core.serving.dispatch import DispatchCounters
from dynamo_core.serving.prompt_encoder import PromptCacheCounters


def values(registry: CollectorRegistry) -> dict[str, float]:
    return {
        sample.name + "".join(f"|{value}" for _, value in sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(render(registry.collect()).body.decode())
        for sample in family.samples
    }


class Plugins:
    """Compiled plugins with one counter."""

    def __init__(self, name: str, *, fails: bool = False) -> None:
        self.faults = Faults()
        self.seen: list[Any] = []
        self._name = name
        self._fails = fails

    def start_metrics(self, context: Any) -> Any:
        Counter(self._name, "Of a plugin.", registry=context.registry).inc()
        if self._fails:
            raise ValueError("broken")
        return self.seen.append


def test_plugins_that_are_compiled_anew_replace_the_series_of_those_before() -> None:
    metrics = FrontendMetrics()
    metrics.start_plugins(Plugins("one"))
    metrics.start_plugins(Plugins("one"))
    assert values(metrics.registry)["one_total"] == 1
    metrics.start_plugins(Plugins("two"))
    assert "one_total" not in values(metrics.registry)


def test_plugins_that_fail_leave_everything_as_it_was() -> None:
    metrics = FrontendMetrics()
    metrics.start_plugins(Plugins("one"))
    with pytest.raises(ValueError, match="broken"):
        metrics.start_plugins(Plugins("two", fails=True))
    with pytest.raises(ValueError, match="Duplicated"):
        metrics.start_plugins(Plugins("dynamo_frontend_requests"))
    assert values(metrics.registry)["one_total"] == 1
    assert "two_total" not in values(metrics.registry)


def test_a_request_is_told_to_the_plugins_of_its_own_application() -> None:
    metrics, earlier, later = FrontendMetrics(), Plugins("one"), Plugins("two")
    account = metrics.start_plugins(earlier)
    metrics.start_plugins(later)
    summary: Any = SimpleNamespace(endpoint="chat", stream=False, status=499, outcome="cancelled", error=None, ttft=None)
    exchange: Any = SimpleNamespace(model=None)
    metrics.admitted(exchange, "m")
    account(exchange, summary)
    assert (earlier.seen, later.seen) == ([summary], [])
    found = values(metrics.registry)
    assert found["dynamo_frontend_model_cancellation_total|m"] == 1
    assert found["dynamo_frontend_requests_started_total|m"] == 1


def test_a_scrape_reads_queues_facts_loads_migrations_hit_rates_and_faults() -> None:
    counters = DispatchCounters(routed=3, migrated=2, stranded=2, too_long=1)
    for rate in (0.0, 0.52, 7.0):
        counters.hit(rate)
    card = ModelCard(name="m", path="", context_length=100, block_size=16)
    worker = WorkerView(10, card, EngineLoad(running=4, kv_used_blocks=9))
    silent = WorkerView(11, card)
    prompts = PromptCacheCounters()
    prompts.hits, prompts.misses, prompts.reused_tokens, prompts.encoded_tokens, prompts.bytes = 1, 2, 30, 40, 500
    model: Any = SimpleNamespace(
        name="m",
        card=card,
        ready=True,
        waiting=5,
        counters=counters,
        workers={10: worker, 11: silent},
        prompt_encoder=SimpleNamespace(counters=prompts),
    )
    faults = Faults()
    faults.returned("gate", "dynamo_authenticate", None, "something else")
    registry = CollectorRegistry()
    registry.register(ModelCollector("p", lambda: [model], [faults, faults], 3))
    found = values(registry)
    assert (found["p_queued_requests|m"], found["p_model_ready|m"]) == (5, 1)
    assert (found["p_model_migration_total|m"], found["p_model_migration_failures_total|m"]) == (2, 2)
    assert found["p_model_migration_max_seq_len_exceeded_total|m"] == 1
    cache = "p_tokenizer_cache"
    assert [found[f"{cache}_{name}_total|m"] for name in ("hits", "misses", "cached_tokens", "uncached_tokens")] == [1, 2, 30, 40]
    assert found[f"{cache}_bytes|m"] == 500
    assert (found["p_model_context_length|m"], found["p_model_migration_limit|m"]) == (100, 3)
    assert (found["p_worker_running_requests|m|a"], found["p_worker_active_decode_blocks|m|a"]) == (4, 9)
    assert "p_worker_running_requests|m|b" not in found
    assert found["dynamo_component_router_requests_total|m"] == 3
    rate = "dynamo_component_router_kv_hit_rate"
    assert [found[f"{rate}_bucket|{bound}|m"] for bound in ("0.0", "0.5", "0.55", "1.0", "+Inf")] == [1, 1, 2, 3, 3]
    assert found[f"{rate}_sum|m"] == pytest.approx(1.52)
    assert found["p_plugin_faults_total|dynamo_authenticate|gate"] == 2
