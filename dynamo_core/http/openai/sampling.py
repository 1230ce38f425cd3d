"""From a client's fields to the records of the serving pipeline, with the checks that types alone do not make."""

from __future__ import annotations

from typing import Any

from dynamo_core.contracts import SamplingParams, StopConditions
from dynamo_core.errors import ContextLengthExceeded, InvalidRequest
from dynamo_core.http.openai.types import SamplingFields

__all__ = ["MAX_CHOICES", "check_fields", "check_room", "conditions_of", "guided_of", "sampling_of", "stops_of"]

MAX_CHOICES = 1024
"""Sequences that one request may start: prompts times ``n``."""


def sampling_of(body: SamplingFields) -> SamplingParams:
    return SamplingParams(
        temperature=body.temperature,
        top_p=body.top_p,
        top_k=body.top_k,
        min_p=body.min_p,
        frequency_penalty=body.frequency_penalty,
        presence_penalty=body.presence_penalty,
        repetition_penalty=body.repetition_penalty,
        logit_bias=body.logit_bias or None,
        seed=body.seed,
        guided=guided_of(body),
    )


def conditions_of(body: SamplingFields, max_tokens: int) -> StopConditions:
    minimum = body.min_tokens or 0
    if minimum > max_tokens:
        raise _invalid(
            "min_tokens", f"`min_tokens` ({minimum}) must not be greater than the tokens that may come ({max_tokens})."
        )
    return StopConditions(
        max_tokens=max_tokens,
        min_tokens=minimum,
        ignore_eos=bool(body.ignore_eos),
        stop_token_ids=tuple(body.stop_token_ids or ()),
    )


def stops_of(body: SamplingFields) -> tuple[str, ...]:
    stops = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())
    if "" in stops:
        raise _invalid("stop", "`stop` must not contain an empty string.")
    return stops


def guided_of(body: SamplingFields) -> dict[str, Any] | None:
    """Structured output as the engine contract has it: one of json, regex, choice and grammar."""
    wishes: list[tuple[str, str, Any]] = [
        (f"guided_{kind}", kind, value)
        for kind in ("json", "regex", "choice", "grammar")
        if (value := getattr(body, f"guided_{kind}")) is not None
    ]
    if body.structured_outputs is not None:
        options = body.structured_outputs
        wishes += [
            ("structured_outputs", kind, value)
            for kind in ("json", "regex", "choice", "grammar")
            if (value := getattr(options, kind)) is not None
        ]
    if body.response_format is not None and body.response_format.type != "text":
        wishes.append(("response_format", "json", _schema_of(body)))
    if not wishes:
        return None
    if len(wishes) > 1:
        raise _invalid(wishes[1][0], f"`{wishes[0][0]}` and `{wishes[1][0]}` ask for two structures at once; use one.")
    param, kind, value = wishes[0]
    if kind == "choice" and not value:
        raise _invalid(param, f"`{param}` needs at least one choice.")
    return {kind: value}


def check_fields(body: SamplingFields) -> None:
    """What is wrong before the model is even known."""
    if body.stream_options is not None and not body.stream:
        raise _invalid("stream_options", "`stream_options` needs `stream` to be true.")


def check_room(param: str, wanted: int | None, prompt_length: int, context_length: int) -> None:
    """Raise when what the client asks for cannot fit in the context beside its prompt. ``param`` names the client's field."""
    if wanted is not None and context_length and prompt_length < context_length < prompt_length + wanted:
        raise ContextLengthExceeded(
            f"The prompt has {prompt_length} tokens and `{param}` asks for {wanted} more, but the model's context is"
            f" {context_length} tokens; ask for {context_length - prompt_length} at most.",
            param=param,
        )


def _schema_of(body: SamplingFields) -> Any:
    wish = body.response_format
    if wish is None or wish.type == "json_object":
        return {"type": "object"}
    schema = (wish.json_schema or {}).get("schema")
    if not isinstance(schema, dict):
        raise _invalid("response_format.json_schema", "`response_format.json_schema` needs an object `schema`.")
    return schema


def _invalid(param: str, message: str) -> InvalidRequest:
    return InvalidRequest(message, param=param, code="invalid_value")
