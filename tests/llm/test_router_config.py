"""Dynamo's words for how to route, and what the plugin makes of them."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from dynamo_core.errors import ConfigError, InvalidRequest
from dynamo_core.llm import AisPerfConfig, KvRouter, KvRouterConfig, LoadThresholdConfig, RouterConfig, RouterMode
from dynamo_core.llm.router_config import request_settings
from dynamo_core.plugins import activate

DYNAMO = {
    "overlap_score_weight": 2.0,
    "host_cache_hit_weight": 0.5,
    "disk_cache_hit_weight": 0.1,
    "router_temperature": 0.2,
    "use_kv_events": False,
    "router_replica_sync": False,
    "router_track_active_blocks": True,
    "router_track_output_blocks": True,
    "router_assume_kv_reuse": True,
    "router_track_prefill_tokens": True,
    "router_prefill_load_model": "ais",
    "router_ttl_secs": 60.0,
    "router_approximate_cache_policy": "lru",
    "router_queue_threshold": 1.5,
    "router_event_threads": 2,
    "router_queue_policy": "wspt",
    "use_remote_indexer": False,
    "serve_indexer": False,
    "enable_session_prefix_index": False,
    "shared_cache_multiplier": 0.5,
    "shared_cache_type": "none",
    "router_predicted_ttl_secs": None,
    "conditional_disagg_enabled": False,
    "conditional_disagg_policy": "isl_bounding",
    "conditional_disagg_eff_isl_threshold": 2048,
    "overlap_score_credit": 0.9,
    "overlap_score_credit_decay": 0.1,
    "prefill_load_scale": 1.0,
    "decode_active_request_weight": 3.0,
    "router_policy_config": None,
    "router_prefill_policy": None,
    "router_decode_policy": None,
    "router_tracking_hash": "public-xxh3-v1",
    "router_tracking_key_file": None,
    "router_tracking_key_id": None,
}


def configured(config: KvRouterConfig) -> Any:
    return activate(("kv-router",), tables={"kv-router": config}).router("kv-router").config


def test_every_setting_of_dynamo_is_one_of_the_plugin_or_how_it_works_anyway() -> None:
    config = KvRouterConfig(**DYNAMO)
    made = configured(config)
    assert (made.overlap_score_weight, made.router_host_cache_hit_weight, made.router_disk_cache_hit_weight) == (2.0, 0.5, 0.1)
    assert (made.router_kv_overlap_score_credit, made.router_kv_overlap_score_credit_decay) == (0.9, 0.1)
    assert (made.router_decode_active_request_weight, made.use_kv_events, made.router_queue_policy) == (3.0, False, "wspt")
    assert (config.overlap_score_weight, config.prefill_load_scale, config.overlap_score_credit) == (2.0, 2.0, 0.9)
    assert configured(KvRouterConfig(2.0, 0.5, 0.1, 0.2, False)).router_temperature == 0.2


def test_a_configuration_is_read_written_and_copied_as_dynamos() -> None:
    config = KvRouterConfig.from_json('{"prefill_load_scale": 0.5, "router_ttl_secs": 7}')
    config.overlap_score_credit = 0.25
    other = config.with_overrides(prefill_load_scale=3.0, decode_active_request_weight=1.0)
    assert (config.prefill_load_scale, config.decode_active_request_weight) == (0.5, 0.0)
    assert (other.prefill_load_scale, other.overlap_score_credit, other.decode_active_request_weight) == (3.0, 0.25, 1.0)
    assert other.with_overrides(4.0, prefill_load_scale=5.0).overlap_score_weight == 4.0
    assert configured(other).router_ttl_secs == 7
    with pytest.raises(ConfigError, match="from_json"):
        KvRouterConfig.from_json("[]")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("router_replica_sync", True),
        ("router_assume_kv_reuse", False),
        ("serve_indexer", True),
        ("conditional_disagg_enabled", True),
        ("router_policy_config", "classes.yaml"),
        ("router_tracking_hash", "keyed-xxh3-v1"),
    ],
)
def test_what_this_router_cannot_do_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"{name}=.* is not supported here"):
        KvRouterConfig(**{name: value})


def test_an_override_is_of_what_one_request_can_have_to_itself() -> None:
    assert request_settings(None) == request_settings({"assume_kv_reuse": True, "shared_cache_multiplier": 0.5}) == {}
    wanted = {"router_temperature": 0.5, "overlap_score_credit": 0.5, "track_prefill_tokens": False, "prefill_load_scale": None}
    assert request_settings(wanted) == {
        "router_temperature": 0.5,
        "router_kv_overlap_score_credit": 0.5,
        "router_track_prefill_tokens": False,
    }
    assert request_settings({"overlap_score_weight": 2.0, "prefill_load_scale": 3.0}) == {"overlap_score_weight": 2.0}
    assert request_settings({"prefill_load_scale": 3.0, "overlap_score_weight": 2.0}) == {"overlap_score_weight": 2.0}
    with pytest.raises(InvalidRequest, match="assume_kv_reuse=False cannot be set for one request; these can: "):
        request_settings({"assume_kv_reuse": False})


def test_other_words_of_dynamo_keep_what_they_are_given() -> None:
    assert AisPerfConfig({"model": "x"}).to_dict() == {"model": "x"}
    assert LoadThresholdConfig(active_prefill_tokens_threshold=3).settings() == {"active_prefill_tokens_threshold": 3}
    config = RouterConfig(RouterMode.KV, KvRouterConfig(2.0), 0.5, 10, None, False, 60, "soft")
    assert (config.router_mode, config.kv_router_config.overlap_score_weight) == (RouterMode.KV, 2.0)
    assert config.load_threshold_config.settings() == {
        "active_decode_blocks_threshold": 0.5,
        "active_prefill_tokens_threshold": 10,
    }
    assert (config.session_affinity_ttl_secs, config.session_affinity_mode) == (60, "soft")


@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        ("__init__", "endpoint block_size kv_router_config ais_perf_config session_affinity_ttl_secs"),
        (
            "generate",
            """token_ids model stop_conditions sampling_options output_options router_config_override worker_id dp_rank extra_args
            block_mm_infos multi_modal_data mm_routing_info routing_constraints response_buffer_size""",
        ),
        ("generate_from_request", "request response_buffer_size"),
        (
            "best_worker",
            """token_ids router_config_override request_id update_indexer block_mm_infos lora_name routing_constraints
            strict_priority policy_class cache_namespace""",
        ),
        ("get_potential_loads", "token_ids block_mm_infos lora_name cache_namespace"),
        ("get_overlap_scores", "token_ids router_config_override block_mm_infos lora_name include_shared cache_namespace"),
        ("dump_events", ""),
        ("mark_prefill_complete", "request_id"),
        ("free", "request_id"),
    ],
)
def test_a_router_takes_dynamos_arguments_in_dynamos_places(method: str, arguments: str) -> None:
    parameters = list(inspect.signature(getattr(KvRouter, method)).parameters.values())[1:]
    placed = [parameter.name for parameter in parameters if parameter.kind is not parameter.KEYWORD_ONLY]
    assert placed == arguments.split()
