"""How to route, in Dynamo's words, and what plugin ``kv-router`` makes of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from dynamo_core.errors import ConfigError, InvalidRequest
from dynamo_core.llm.model import RouterMode

__all__ = ["AisPerfConfig", "KvRouterConfig", "LoadThresholdConfig", "RouterConfig", "request_settings"]

_NAMES = {
    "overlap_score_credit": "router_kv_overlap_score_credit",
    "overlap_score_credit_decay": "router_kv_overlap_score_credit_decay",
    "prefill_load_scale": "overlap_score_weight",
    "host_cache_hit_weight": "router_host_cache_hit_weight",
    "disk_cache_hit_weight": "router_disk_cache_hit_weight",
    "decode_active_request_weight": "router_decode_active_request_weight",
}
"""Dynamo's names of the plugin's settings, where they differ."""

_AS_IT_IS: dict[str, tuple[Any, ...]] = {
    "router_replica_sync": (False,),
    "router_assume_kv_reuse": (True,),
    "router_prefill_load_model": ("none", "ais"),
    "use_remote_indexer": (False,),
    "serve_indexer": (False,),
    "enable_session_prefix_index": (False,),
    "shared_cache_type": ("none",),
    "conditional_disagg_enabled": (False,),
    "router_policy_config": (),
    "router_prefill_policy": (),
    "router_decode_policy": (),
    "router_tracking_hash": ("public-xxh3-v1",),
    "router_tracking_key_file": (),
    "router_tracking_key_id": (),
}
"""What this router does in one way only: the values that say so. It learns how long prompts take, whatever else models it."""

_MEANINGLESS = frozenset({"shared_cache_multiplier", "skip_initial_worker_wait"})
_OF_WHAT_IS_OFF = "conditional_disagg_"

_FOR_A_REQUEST = {
    "overlap_score_weight": "overlap_score_weight",
    "prefill_load_scale": "overlap_score_weight",
    "overlap_score_credit": "router_kv_overlap_score_credit",
    "overlap_score_credit_decay": "router_kv_overlap_score_credit_decay",
    "decode_active_request_weight": "router_decode_active_request_weight",
    "router_temperature": "router_temperature",
    "track_prefill_tokens": "router_track_prefill_tokens",
}


class _Setting:
    """An attribute that is an item of the mapping."""

    def __init__(self, key: str, default: float) -> None:
        self._key = key
        self._default = default

    def __get__(self, config: KvRouterConfig | None, _: type) -> float:
        value: float = self._default if config is None else config.get(self._key, self._default)
        return value

    def __set__(self, config: KvRouterConfig, value: float) -> None:
        config[self._key] = value


class KvRouterConfig(dict[str, Any]):
    """Items are settings of the plugin, which checks them (``docs/routing.md``). A setting has Dynamo's name or the plugin's.

    Raises ConfigError for what this router cannot do.
    """

    overlap_score_weight = _Setting("overlap_score_weight", 1.0)
    prefill_load_scale = _Setting("overlap_score_weight", 1.0)
    overlap_score_credit = _Setting("router_kv_overlap_score_credit", 1.0)
    overlap_score_credit_decay = _Setting("router_kv_overlap_score_credit_decay", 0.0)
    decode_active_request_weight = _Setting("router_decode_active_request_weight", 0.0)

    def __init__(
        self,
        overlap_score_weight: float | None = None,
        host_cache_hit_weight: float | None = None,
        disk_cache_hit_weight: float | None = None,
        router_temperature: float | None = None,
        use_kv_events: bool | None = None,
        **settings: Any,
    ) -> None:
        settings |= {
            "overlap_score_weight": settings.get("prefill_load_scale") if overlap_score_weight is None else overlap_score_weight,
            "host_cache_hit_weight": host_cache_hit_weight,
            "disk_cache_hit_weight": disk_cache_hit_weight,
            "router_temperature": router_temperature,
            "use_kv_events": use_kv_events,
        }
        settings.pop("prefill_load_scale", None)
        off = not settings.get("conditional_disagg_enabled")
        for name, value in settings.items():
            if value is None or name in _MEANINGLESS or (off and name.startswith(_OF_WHAT_IS_OFF)):
                continue
            if name not in _AS_IT_IS:
                self[_NAMES.get(name, name)] = value
            elif value not in _AS_IT_IS[name]:
                raise ConfigError(f"KvRouterConfig: {name}={value!r} is not supported here; leave it out")

    @staticmethod
    def from_json(config_json: str) -> KvRouterConfig:
        """Raises ConfigError for what is no JSON object."""
        try:
            settings = msgspec.json.decode(config_json, type=dict[str, Any])
        except msgspec.DecodeError as error:
            raise ConfigError(f"KvRouterConfig.from_json: {error}") from None
        return KvRouterConfig(**settings)

    def copy(self) -> KvRouterConfig:
        copied = KvRouterConfig()
        copied.update(self)
        return copied

    def with_overrides(
        self,
        overlap_score_weight: float | None = None,
        *,
        overlap_score_credit: float | None = None,
        overlap_score_credit_decay: float | None = None,
        prefill_load_scale: float | None = None,
        decode_active_request_weight: float | None = None,
    ) -> KvRouterConfig:
        """A copy with what is given in the place of its own."""
        copied = self.copy()
        copied.update(
            KvRouterConfig(
                overlap_score_weight,
                overlap_score_credit=overlap_score_credit,
                overlap_score_credit_decay=overlap_score_credit_decay,
                prefill_load_scale=prefill_load_scale,
                decode_active_request_weight=decode_active_request_weight,
            )
        )
        return copied


class LoadThresholdConfig(msgspec.Struct, kw_only=True):
    """From where on a worker is busy; see :class:`~dynamo_core.contracts.BusyThresholds`."""

    active_decode_blocks_threshold: float | None = None
    active_prefill_tokens_threshold: int | None = None
    active_prefill_tokens_threshold_frac: float | None = None

    def settings(self) -> dict[str, float]:
        """Those that are set, as the plugin names them."""
        return {name: value for name, value in msgspec.structs.asdict(self).items() if value is not None}


class AisPerfConfig:
    """An estimator of the time that prompts take. ``kv-router`` keeps none: it learns the time from first tokens."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._config = dict(config)

    def to_dict(self) -> dict[str, Any]:
        return dict(self._config)


class RouterConfig:
    """A mode, and what it needs. ``enforce_disagg`` means nothing."""

    def __init__(
        self,
        mode: RouterMode,
        config: KvRouterConfig | None = None,
        active_decode_blocks_threshold: float | None = None,
        active_prefill_tokens_threshold: int | None = None,
        active_prefill_tokens_threshold_frac: float | None = None,
        enforce_disagg: bool = False,
        session_affinity_ttl_secs: int | None = None,
        session_affinity_mode: str = "hard",
    ) -> None:
        del enforce_disagg
        self.router_mode = mode
        self.kv_router_config = config or KvRouterConfig()
        self.load_threshold_config = LoadThresholdConfig(
            active_decode_blocks_threshold=active_decode_blocks_threshold,
            active_prefill_tokens_threshold=active_prefill_tokens_threshold,
            active_prefill_tokens_threshold_frac=active_prefill_tokens_threshold_frac,
        )
        self.session_affinity_ttl_secs = session_affinity_ttl_secs
        self.session_affinity_mode = session_affinity_mode


def request_settings(override: Mapping[str, Any] | None) -> dict[str, Any]:
    """A ``router_config_override`` as the plugin's settings. Raises InvalidRequest for what no request can have to itself."""
    settings: dict[str, Any] = {}
    for name, value in (override or {}).items():
        if value is None or name == "shared_cache_multiplier" or (name == "assume_kv_reuse" and value is True):
            continue
        if name not in _FOR_A_REQUEST:
            able = ", ".join(sorted(_FOR_A_REQUEST))
            text = f"router_config_override: {name}={value!r} cannot be set for one request; these can: {able}"
            raise InvalidRequest(text, param="router_config_override")
        settings.setdefault(_FOR_A_REQUEST[name], value)
        if name == "overlap_score_weight":  # it wins over prefill_load_scale
            settings["overlap_score_weight"] = value
    return settings
