"""What a worker publishes about the model it serves."""

from __future__ import annotations

import enum
from typing import Any, Literal, TypeAlias

import msgspec

__all__ = ["ModelCard", "ModelInput", "ModelType", "Resume", "Role"]


Resume: TypeAlias = Literal["exact", "greedy-only", "none"]
"""``exact``: with the tokens that the first engine would have made; ``greedy-only``: if the temperature is 0; ``none``: not."""


class Role(enum.StrEnum):
    AGGREGATED = "aggregated"
    PREFILL = "prefill"
    DECODE = "decode"
    ENCODE = "encode"


class ModelInput(enum.StrEnum):
    TOKENS = "tokens"
    """The frontend renders, tokenizes and detokenizes; the worker sees token ids only."""
    TEXT = "text"
    """The worker gets the client's JSON."""


class ModelType(enum.StrEnum):
    CHAT = "chat"
    COMPLETIONS = "completions"
    EMBEDDING = "embedding"


class ModelCard(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One model as one instance serves it. Several instances with one ``name`` are one model to the client."""

    name: str
    path: str
    """Folder with the tokenizer and the chat template, readable by the frontend."""
    aliases: tuple[str, ...] = ()
    types: tuple[ModelType, ...] = (ModelType.CHAT, ModelType.COMPLETIONS)
    input: ModelInput = ModelInput.TOKENS
    role: Role = Role.AGGREGATED
    engine: str = ""
    context_length: int = 0
    """Tokens of prompt and output together; 0 when the engine sets no limit."""
    block_size: int = 0
    """Tokens a KV block; 0 when the engine has no blocks."""
    total_kv_blocks: int = 0
    max_num_seqs: int = 0
    max_num_batched_tokens: int = 0
    kv_events: bool = False
    """True when the engine publishes what its prefix cache holds."""
    data_parallel_size: int = 1
    taints: tuple[str, ...] = ()
    """Words that requests may require of a worker, or prefer."""
    resume: dict[str, Resume] = {}
    """As :class:`~dynamo_core.contracts.EngineInfo` has it."""
    lora: str | None = None
    chat_template: str | None = None
    """Jinja, instead of the folder's."""
    tool_call_parser: str | None = None
    reasoning_parser: str | None = None
    created: int = 0
    """Seconds since the epoch."""
    extra: dict[str, Any] = {}
