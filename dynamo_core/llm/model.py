"""The words in which a backend describes its model."""

from __future__ import annotations

import enum
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from dynamo_core import contracts
from dynamo_core.errors import ConfigError

__all__ = ["ModelInput", "ModelRuntimeConfig", "ModelType", "RouterMode", "RoutingConstraints", "WorkerType", "card_types"]


class ModelInput(enum.Enum):
    """What the backend wants to see of a request."""

    Tokens = "tokens"
    """Token ids: the frontend renders, tokenizes and detokenizes."""
    Text = "text"
    """The client's JSON."""
    Tensor = "tensor"


class ModelType(enum.Flag):
    """What clients may ask of the model; combine with ``|``."""

    Chat = enum.auto()
    Completions = enum.auto()
    Embedding = enum.auto()
    TensorBased = enum.auto()
    Prefill = enum.auto()
    Images = enum.auto()
    Audios = enum.auto()
    Videos = enum.auto()
    Realtime = enum.auto()
    Classify = enum.auto()
    Pooling = enum.auto()
    Rerank = enum.auto()
    Empty = 0
    """Nothing."""

    def supports_chat(self) -> bool:
        return ModelType.Chat in self

    def supports_embedding(self) -> bool:
        return ModelType.Embedding in self

    def supports_classify(self) -> bool:
        return ModelType.Classify in self

    def supports_pooling(self) -> bool:
        return ModelType.Pooling in self

    def supports_rerank(self) -> bool:
        return ModelType.Rerank in self


class WorkerType(enum.Enum):
    Aggregated = contracts.Role.AGGREGATED
    Prefill = contracts.Role.PREFILL
    Decode = contracts.Role.DECODE
    Encode = contracts.Role.ENCODE

    def __str__(self) -> str:
        return self.value.value


class RouterMode(enum.Enum):
    """For ``Endpoint.client(router_mode)``, which knows the first two; KV routing is :class:`~dynamo_core.llm.KvRouter`'s."""

    RoundRobin = "round-robin"
    Random = "random"
    PowerOfTwoChoices = "power-of-two"
    KV = "kv-router"
    Direct = "direct"
    LeastLoaded = "least-loaded"
    DeviceAwareWeighted = "device-aware-weighted"


class RoutingConstraints:
    """Which workers a request may go to, by their taints: all of ``required_taints``, and rather those with preferred ones."""

    __slots__ = ("preferred_taints", "required_taints")

    def __init__(self, required_taints: Iterable[str] | None = None, preferred_taints: Mapping[str, float] | None = None) -> None:
        self.required_taints = frozenset(required_taints or ())
        self.preferred_taints: dict[str, float] = dict(preferred_taints or {})


class ModelRuntimeConfig:
    """What the engine knows about itself; set what applies. Attributes that are unknown here are refused."""

    __slots__ = (
        "bootstrap_host", "bootstrap_port", "context_length", "data_parallel_size", "data_parallel_start_rank",
        "enable_eagle", "enable_local_indexer", "engine_specific", "exclude_tools_when_tool_choice_none",
        "kv_event_publishing_enabled", "kv_event_source_mode", "kv_state_endpoint", "kv_transfer_domain",
        "kv_transfer_enforcement", "kv_transfer_preferred_weight",
        "max_num_batched_tokens", "max_num_seqs", "reasoning_parser", "runtime_data",
        "stable_routing_id", "structural_tag", "taints", "tensor_model_config", "tokenizer_backend", "tool_call_parser",
        "topology_domains", "total_kv_blocks",
    )  # fmt: skip

    def __init__(self) -> None:
        self.context_length: int | None = None
        self.total_kv_blocks: int | None = None
        self.max_num_seqs: int | None = None
        self.max_num_batched_tokens: int | None = None
        self.tool_call_parser: str | None = None
        self.reasoning_parser: str | None = None
        self.data_parallel_size = 1
        self.data_parallel_start_rank = 0
        self.enable_local_indexer = True
        self.enable_eagle = False
        self.exclude_tools_when_tool_choice_none = True
        self.kv_event_publishing_enabled: bool | None = None
        self.kv_event_source_mode: str | None = None
        self.kv_state_endpoint: str | None = None
        self.kv_transfer_domain: str | None = None
        self.kv_transfer_enforcement: str | None = None
        self.kv_transfer_preferred_weight: float | None = None
        self.tokenizer_backend: str | None = None
        self.structural_tag: dict[str, Any] | None = None
        self.taints: Collection[str] = ()
        self.stable_routing_id: str | None = None
        self.topology_domains: dict[str, str] = {}
        self.bootstrap_host: str | None = None
        self.bootstrap_port: int | None = None
        self.tensor_model_config: Any = None
        self.runtime_data: dict[str, Any] = {}
        self.engine_specific: dict[str, Any] = {}

    def set_structural_tag(self, structural_tag: dict[str, Any] | None) -> None:
        self.structural_tag = structural_tag

    def set_disaggregated_endpoint(self, bootstrap_host: str | None = None, bootstrap_port: int | None = None) -> None:
        self.bootstrap_host, self.bootstrap_port = bootstrap_host, bootstrap_port

    def set_engine_specific(self, key: str, value: Any) -> None:
        self.engine_specific[key] = value

    def get_engine_specific(self, key: str) -> Any:
        """``None`` when it was not set."""
        return self.engine_specific.get(key)


_SERVED = {
    ModelType.Chat: contracts.ModelType.CHAT,
    ModelType.Completions: contracts.ModelType.COMPLETIONS,
    ModelType.Embedding: contracts.ModelType.EMBEDDING,
}


def card_types(kind: ModelType) -> tuple[contracts.ModelType, ...]:
    """As a model card says it. Raises ConfigError for what no frontend serves."""
    unknown = [one.name or "" for one in kind if one not in _SERVED]
    if unknown or not kind:
        raise ConfigError(f"ModelType {' | '.join(unknown) or kind!r} is not served: register Chat, Completions or Embedding")
    return tuple(served for one, served in _SERVED.items() if one in kind)
