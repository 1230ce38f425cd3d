"""Dynamo's arguments have their names and their places here."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest

from dynamo_core import llm
from dynamo_core.contracts.span import Span
from dynamo_core.runtime import Client, Context, DistributedRuntime, Endpoint

PLACES: list[tuple[Callable[..., Any], str]] = [
    (DistributedRuntime.endpoint, "path"),
    (DistributedRuntime.set_health_status, "ready"),
    (DistributedRuntime.register_engine_route, "route_name callback"),
    (Endpoint.serve_endpoint, "handler graceful_shutdown metrics_labels health_check_payload"),
    (Endpoint.serve_bidirectional_endpoint, "handler graceful_shutdown metrics_labels"),
    (Endpoint.client, "router_mode"),
    (Client.wait_for_instance_by_runtime_data, "key value timeout_s"),
    (Client.wait_for_instances_by_runtime_data, "key value min_count timeout_s"),
    (Client.random, "request annotated context"),
    (Client.round_robin, "request annotated context"),
    (Client.direct, "request instance_id annotated context"),
    (Client.generate, "request annotated context"),
    (Client.static, "request annotated context"),
    (Context, "id metadata"),
    (Context.detached, "id"),
    (Context.start_span, "name attrs"),
    (Span.set_attribute, "key value"),
    (Span.add_event, "name attrs"),
    (Span.set_status, "status description"),
    (llm.register_model, "model_input model_type endpoint model_path model_name"),
    (llm.unregister_model, "endpoint lora_name"),
    (llm.update_model_taints, "endpoint taints"),
    (llm.fetch_model, "remote_name ignore_weights"),
    (llm.RoutingConstraints, "required_taints preferred_taints"),
    (llm.ModelRuntimeConfig.set_engine_specific, "key value"),
    (llm.ModelRuntimeConfig.set_disaggregated_endpoint, "bootstrap_host bootstrap_port"),
    (llm.RadixTree.find_matches, "sequence early_exit"),
    (llm.RadixTree.apply_event, "worker_id kv_cache_event_bytes"),
    (llm.KvIndexer, "endpoint block_size"),
    (llm.KvIndexer.find_matches_for_request, "token_ids lora_name is_eagle"),
    (llm.ApproxKvIndexer, "endpoint kv_block_size router_ttl_secs"),
    (llm.ApproxKvIndexer.process_routing_decision_for_request, "tokens worker_id dp_rank"),
    (llm.KvEventPublisher.publish_removed, "block_hashes"),
    (llm.KvEventPublisher.publish_batch, "events"),
    (llm.WorkerMetricsPublisher.create_endpoint, "endpoint"),
    (llm.WorkerMetricsPublisher.publish, "dp_rank active_decode_blocks kv_used_blocks"),
    (
        llm.KvEventPublisher.publish_stored,
        "token_ids num_block_tokens block_hashes parent_hash block_mm_infos lora_name is_eagle cache_salt",
    ),
    (
        llm.RouterConfig,
        """mode config active_decode_blocks_threshold active_prefill_tokens_threshold active_prefill_tokens_threshold_frac
        enforce_disagg session_affinity_ttl_secs session_affinity_mode""",
    ),
]


@pytest.mark.parametrize(("function", "names"), PLACES, ids=lambda value: getattr(value, "__qualname__", None))
def test_an_argument_has_dynamos_name_and_place(function: Callable[..., Any], names: str) -> None:
    wanted = names.split()
    parameters = inspect.signature(function).parameters.values()
    placed = [one.name for one in parameters if one.kind is one.POSITIONAL_OR_KEYWORD and one.name != "self"]
    assert placed[: len(wanted)] == wanted


def test_a_runtime_takes_its_arguments_in_every_form() -> None:
    DistributedRuntime(None, "mem", True)
    DistributedRuntime(None, "mem", "inproc", None, event_plane="inproc", response_plane="tcp")
    named = DistributedRuntime(
        event_loop=None, discovery_backend="mem", request_plane="inproc", enable_nats=False, event_plane="inproc"
    )
    assert named.endpoint(path="dyn://a.b.c").path == "a.b.c"
