"""Configuration of the KV router: ``[plugins.kv-router]``."""

from __future__ import annotations

from typing import Annotated

import msgspec

__all__ = ["KvRouterConfig"]


class KvRouterConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    overlap_score_weight: Annotated[float, msgspec.Meta(ge=0)] = 1.0
    """Weight of the time that prompts take; 0 looks at load alone."""
    router_temperature: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    """0 takes the cheapest worker; above, one is drawn, the more evenly the higher."""
    use_kv_events: bool = True
    """False: don't listen to the engines; assume that a worker has what was sent to it."""
    router_ttl_secs: Annotated[float, msgspec.Meta(gt=0)] = 120.0
    """How long that assumption holds for a worker that publishes no KV events."""
    router_max_tree_size: Annotated[int, msgspec.Meta(ge=1)] = 1 << 20
    """Blocks remembered of one worker at most."""
    router_prune_target_ratio: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.8
    """What a pruning of the oldest leaves of that."""
