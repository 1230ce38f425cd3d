"""Between the frontend's engine requests and the mappings that a backend's handler reads and yields.

A handler of a registered model sees ``token_ids``, ``sampling_options``, ``stop_conditions``, ``output_options``,
``eos_token_ids`` and so on, each option present, ``None`` where the client said nothing; it yields ``{"token_ids": [...]}`` and,
with the last chunk, a ``finish_reason``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import msgspec

from dynamo_core.contracts import EngineChunk, EngineRequest, FinishReason, SamplingParams, StopConditions, TokenLogprob
from dynamo_core.errors import EngineError
from dynamo_core.serving.wire import decode_request, encode_chunk

__all__ = ["TokensAdapter", "request_of", "shown"]

_REASONS = {"eos": "stop", "stop_sequence": "stop", "max_tokens": "length", "abort": "cancelled", "cancel": "cancelled"}
_KNOWN = {"stop", "length", "cancelled", "error", "content_filter", "tool_calls"}


class TokensAdapter:
    """Of one registered model. What is no engine request, or no chunk, passes as it is."""

    def __init__(self, model: str) -> None:
        self._model = model

    def request(self, request: Any) -> Any:
        if not isinstance(request, dict) or not {"id", "token_ids"} <= request.keys() or "stop_conditions" in request:
            return request
        return shown(decode_request(request), self._model)

    def item(self, item: Any) -> Any:
        return encode_chunk(_chunk(item)) if isinstance(item, Mapping) else item


def shown(request: EngineRequest, model: str) -> dict[str, Any]:
    """As a handler sees it."""
    sampling = {field: getattr(request.sampling, field) for field in SamplingParams.__struct_fields__}
    guided = sampling.pop("guided")
    return {
        "id": request.id,
        "model": model,
        "token_ids": list(request.token_ids),
        "sampling_options": {"n": 1, "best_of": 1, **sampling, "guided_decoding": guided},
        "stop_conditions": {
            "max_tokens": request.stop.max_tokens,
            "min_tokens": request.stop.min_tokens,
            "ignore_eos": request.stop.ignore_eos,
            "stop": None,
            "stop_token_ids": list(request.stop.stop_token_ids),
            "stop_token_ids_hidden": list(request.stop.stop_token_ids),
        },
        "output_options": {"logprobs": request.logprobs, "prompt_logprobs": request.prompt_logprobs},
        "eos_token_ids": list(request.eos_token_ids),
        "routing": {"priority": request.priority, "lora_name": request.lora, "cache_salt": request.cache_salt},
        "extra_args": request.extra,
        "annotations": [],
    }


def request_of(
    id: str,
    token_ids: list[int],
    stop_conditions: Mapping[str, Any] | None,
    sampling_options: Mapping[str, Any] | None,
    output_options: Mapping[str, Any] | None,
    extra: Mapping[str, Any] | None,
) -> EngineRequest:
    """The other direction: from a caller's mappings. Raises ``msgspec.ValidationError``; what no engine knows is left out."""
    stop = {key: value for key, value in (stop_conditions or {}).items() if value is not None}
    stop.setdefault("stop_token_ids", stop.pop("stop_token_ids_hidden", ()))
    sampling = dict(sampling_options or {})
    sampling.setdefault("guided", sampling.pop("guided_decoding", None))
    output = output_options or {}
    return EngineRequest(
        id=id,
        token_ids=token_ids,
        stop=msgspec.convert(stop, StopConditions),
        sampling=msgspec.convert(sampling, SamplingParams),
        logprobs=output.get("logprobs"),
        prompt_logprobs=output.get("prompt_logprobs"),
        extra=dict(extra or {}),
    )


def _chunk(item: Mapping[str, Any]) -> EngineChunk:
    reason = item.get("finish_reason")
    error = item.get("error")
    if isinstance(reason, str) and reason not in _KNOWN:
        if reason.startswith("error"):
            reason, error = "error", error or reason
        else:
            reason = _REASONS.get(reason)
            if reason is None:
                raise EngineError(f"a backend ended with finish_reason {item.get('finish_reason')!r}: use stop, length or error")
    token_ids = item.get("token_ids") or ()
    return EngineChunk(
        token_ids=list(token_ids),
        finish_reason=cast("FinishReason | None", reason),
        stop_reason=item.get("stop_reason"),
        cached_tokens=_cached(item),
        logprobs=_logprobs(item, token_ids),
        error=error,
    )


def _cached(item: Mapping[str, Any]) -> int | None:
    if item.get("cached_tokens") is not None:
        return int(item["cached_tokens"])
    details = (item.get("completion_usage") or {}).get("prompt_tokens_details") or {}
    cached = details.get("cached_tokens")
    return None if cached is None else int(cached)


def _logprobs(item: Mapping[str, Any], token_ids: Any) -> tuple[TokenLogprob, ...] | None:
    chosen = item.get("log_probs")
    if chosen is None:
        return None
    best = item.get("top_logprobs") or [()] * len(chosen)
    return tuple(
        TokenLogprob(token, float(logprob), tuple((int(one["token_id"]), float(one["logprob"])) for one in top or ()))
        for token, logprob, top in zip(token_ids, chosen, best, strict=False)
    )
