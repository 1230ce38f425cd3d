"""Configuration of the KV router: ``[plugins.kv-router]``, ``--router-…`` and ``DYN_ROUTER_…``."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from dynamo_core.config import setting

__all__ = ["KvRouterConfig"]

Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Weight = Annotated[float, msgspec.Meta(gt=0)]
Amount = Annotated[float, msgspec.Meta(ge=0)]
Count = Annotated[int, msgspec.Meta(ge=0)]

_COMMANDS = ("serve", "frontend", "simulate")


def _setting(doc: str, *env: str, flag: str | None = None, **meta: Any) -> msgspec.Meta:
    return setting(doc, *env, flag=flag, commands=_COMMANDS, **meta)


# fmt: off
class KvRouterConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    overlap_score_weight: Annotated[float, _setting("Weight of the time that prompts take; 0 looks at load alone.", "DYN_ROUTER_KV_OVERLAP_SCORE_WEIGHT", "DYN_ROUTER_OVERLAP_SCORE_WEIGHT", "DYN_ROUTER_PREFILL_LOAD_SCALE", flag="router-kv-overlap-score-weight", ge=0)] = 1.0
    router_kv_overlap_score_credit: Annotated[float, _setting("What a block in a device's memory saves, as a share of computing it.", "DYN_ROUTER_KV_OVERLAP_SCORE_CREDIT", ge=0)] = 1.0
    router_kv_overlap_score_credit_decay: Annotated[float, _setting("How fast the credit fades with the time for which a worker's prompts wait longer than the least loaded worker's.", "DYN_ROUTER_KV_OVERLAP_SCORE_CREDIT_DECAY", ge=0)] = 0.0
    router_host_cache_hit_weight: Annotated[Share, _setting("What a block in the host's memory saves, as a share of computing it.", "DYN_ROUTER_HOST_CACHE_HIT_WEIGHT")] = 0.75
    router_disk_cache_hit_weight: Annotated[Share, _setting("What a block on disk saves, as a share of computing it.", "DYN_ROUTER_DISK_CACHE_HIT_WEIGHT")] = 0.25
    router_decode_active_request_weight: Annotated[float, _setting("Blocks that a running request weighs besides those that it has.", "DYN_ROUTER_DECODE_ACTIVE_REQUEST_WEIGHT", ge=0)] = 0.0
    router_temperature: Annotated[float, _setting("0 takes the cheapest worker; above, one is drawn, the more evenly the higher.", "DYN_ROUTER_TEMPERATURE", ge=0)] = 0.0
    use_kv_events: Annotated[bool, _setting("Listen to the engines' KV events; without, assume that a worker has what was sent to it.", "DYN_ROUTER_USE_KV_EVENTS", "DYN_KV_EVENTS", flag="router-kv-events")] = True
    router_approximate_cache_policy: Annotated[Literal["ttl", "lru"], _setting("How long a worker without KV events is believed to have a prompt: for a time, or until later ones use up its capacity.", "DYN_ROUTER_APPROXIMATE_CACHE_POLICY")] = "ttl"
    router_ttl_secs: Annotated[float, _setting("How long a worker without KV events is believed to have a prompt.", "DYN_ROUTER_TTL_SECS", "DYN_ROUTER_TTL", gt=0)] = 120.0
    router_predicted_ttl_secs: Annotated[float, _setting("How long after its first token a prompt still counts as cached where it went, if no KV event says so.", "DYN_ROUTER_PREDICTED_TTL_SECS", ge=0)] = 0.0
    router_max_tree_size: Annotated[int, _setting("Blocks remembered of one worker at most.", "DYN_ROUTER_MAX_TREE_SIZE", ge=1)] = 1 << 20
    router_prune_target_ratio: Annotated[Share, _setting("Share of router_max_tree_size that is left when the oldest blocks are dropped.", "DYN_ROUTER_PRUNE_TARGET_RATIO")] = 0.8
    router_event_threads: Annotated[int, _setting("Accepted and without effect: events are indexed as they come, by the frontend's only thread.", "DYN_ROUTER_EVENT_THREADS", ge=1)] = 4
    router_track_active_blocks: Annotated[bool, _setting("Count what running requests hold in a worker's cache, and what it costs to attend to it.", "DYN_ROUTER_TRACK_ACTIVE_BLOCKS")] = True
    router_track_output_blocks: Annotated[bool, _setting("Count what running requests will generate: as many tokens as the client expects, else the mean so far.", "DYN_ROUTER_TRACK_OUTPUT_BLOCKS")] = False
    router_track_prefill_tokens: Annotated[bool, _setting("Count the prompts that a worker has not computed yet.", "DYN_ROUTER_TRACK_PREFILL_TOKENS")] = True
    active_decode_blocks_threshold: Annotated[Amount | None, _setting("A worker is busy when running requests have this share of its KV blocks.", "DYN_ACTIVE_DECODE_BLOCKS_THRESHOLD")] = None
    active_prefill_tokens_threshold: Annotated[Count | None, _setting("A worker is busy when so many prompt tokens wait there to be computed.", "DYN_ACTIVE_PREFILL_TOKENS_THRESHOLD")] = None
    active_prefill_tokens_threshold_frac: Annotated[Amount | None, _setting("A worker is busy when the prompt tokens that wait there are this share of what its engine computes in a step.", "DYN_ACTIVE_PREFILL_TOKENS_THRESHOLD_FRAC")] = None
    router_when_busy: Annotated[Literal["reject", "hold"], _setting("What happens to requests when all workers are busy: 503, or they wait.", "DYN_ROUTER_WHEN_BUSY")] = "reject"
    router_queue_threshold: Annotated[Amount | None, _setting("Let requests wait when all workers have more prompt tokens to compute than this share of a step's; never if not given.", "DYN_ROUTER_QUEUE_THRESHOLD")] = None
    router_queue_policy: Annotated[Literal["fcfs", "wspt", "lcfs"], _setting("Which of those that wait goes first: the oldest, the one with the least to compute, or the youngest.", "DYN_ROUTER_QUEUE_POLICY")] = "fcfs"
    router_queue_limit: Annotated[int, _setting("Requests that may wait in a frontend; further ones get 503.", "DYN_ROUTER_QUEUE_LIMIT", ge=0)] = 4096
    router_overlap_refresh_after_secs: Annotated[float, _setting("Time after which wspt looks again at what of a waiting prompt is cached.", "DYN_ROUTER_OVERLAP_REFRESH_AFTER_SECS", gt=0)] = 10.0
    router_classes: Annotated[dict[str, Weight], _setting("Class and weight: classes of requests that wait share the workers by these; others have 1. CLASS=WEIGHT, repeatable.", "DYN_ROUTER_CLASSES", flag="router-class")] = {}
    router_class_by: Annotated[str, _setting("What tells the class: class (the principal's, or the header x-dynamo-meta-policy-class), tenant, or header:NAME.", "DYN_ROUTER_CLASS_BY", pattern="^(class|tenant|header:.+)$")] = "class"
    router_min_initial_workers: Annotated[int, _setting("Let requests wait until so many workers have come.", "DYN_ROUTER_MIN_INITIAL_WORKERS", ge=0)] = 0
