"""Engine arguments of the mocker, and what it reads from the model folder."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec

from dynamo_core.errors import ConfigError

__all__ = ["MockerArgs", "ModelLimits", "decode_args", "read_limits"]

_Positive = Annotated[int, msgspec.Meta(ge=1)]
_NotNegative = Annotated[float, msgspec.Meta(ge=0)]


class MockerArgs(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``--engine-arg KEY=VALUE``."""

    speedup_ratio: _NotNegative = 1.0
    """Simulated time divided by real time; 0: no delay at all."""
    decode_speedup_ratio: _NotNegative = 1.0
    """The same for decoding alone, on top of ``speedup_ratio``."""
    block_size: _Positive = 16
    """Tokens a KV block."""
    num_blocks: _Positive = 16384
    """KV blocks of the cache."""
    max_num_seqs: _Positive = 256
    """Sequences that run at the same time."""
    max_num_batched_tokens: _Positive = 8192
    """Tokens that one step computes at most; at least max_num_seqs."""
    vocab_size: Annotated[int, msgspec.Meta(ge=8)] | None = None
    """Output tokens are drawn from below it; that of the model's config.json, else 32000, if not given."""
    startup_time: _NotNegative = 0.0
    """Seconds that the start takes, whatever the speed-up."""
    enable_prefix_caching: bool = True
    """False: nothing is reused and no KV event published."""
    data_parallel_size: Annotated[int, msgspec.Meta(ge=1, le=64)] = 1
    """Ranks, each with a cache and a scheduler of its own."""
    emit_eos: bool = False
    """True: an end-of-sequence token may be drawn and then ends the sequence."""


class ModelLimits(msgspec.Struct, frozen=True):
    """0: the folder does not say."""

    vocab_size: int = 0
    context_length: int = 0


def decode_args(values: Mapping[str, Any]) -> MockerArgs:
    """Raises :class:`~dynamo_core.errors.ConfigError` that names the argument."""
    for key in values:
        if key not in MockerArgs.__struct_fields__:
            near = difflib.get_close_matches(key, MockerArgs.__struct_fields__, 1, 0.5)
            hint = f"did you mean {near[0]}?" if near else f"it takes {', '.join(MockerArgs.__struct_fields__)}."
            raise ConfigError(f"Engine mocker has no argument {key!r}; {hint}")
    for key, value in values.items():
        try:
            msgspec.convert({key: value}, MockerArgs)
        except msgspec.ValidationError as error:
            what = str(error).partition(" - at ")[0]
            raise ConfigError(f"Engine argument {key}={value!r} of the mocker is not usable: {what}.") from error
    args = msgspec.convert(dict(values), MockerArgs)
    if args.max_num_batched_tokens < args.max_num_seqs:
        raise ConfigError(
            f"Engine mocker needs max_num_batched_tokens ({args.max_num_batched_tokens}) to be at least max_num_seqs "
            f"({args.max_num_seqs}); raise the one or lower the other."
        )
    return args


def read_limits(model_path: str) -> ModelLimits:
    """From the folder's ``config.json``; its absence is no error, the mocker needs none."""
    try:
        config = json.loads((Path(model_path) / "config.json").read_bytes())
    except (OSError, ValueError):
        return ModelLimits()
    text = {**config, **(config.get("text_config") or {})} if isinstance(config, dict) else {}
    vocabulary, context = text.get("vocab_size"), text.get("max_position_embeddings")
    return ModelLimits(vocabulary if isinstance(vocabulary, int) else 0, context if isinstance(context, int) else 0)
