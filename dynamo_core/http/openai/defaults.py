"""``--request-template``: what a request gets for fields that it leaves out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from dynamo_core.errors import ConfigError
from dynamo_core.http.openai.types import ChatCompletionRequest
from dynamo_core.plugins.names import suggestion

__all__ = ["read_request_template", "with_defaults"]

T = TypeVar("T", bound=msgspec.Struct)

_NOT_FOR_ALL = frozenset({"messages", "stream", "stream_options", "user", "logprobs", "top_logprobs"})


def read_request_template(path: str | None) -> dict[str, Any]:
    """The fields of a JSON file, checked as a client's would be; none without a file. Raises :class:`ConfigError`.

    ``max_completion_tokens`` counts as ``max_tokens``, so that a request may say either.
    """
    if path is None:
        return {}
    try:
        template = msgspec.json.decode(Path(path).read_bytes(), type=dict[str, Any])
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ConfigError(f"--request-template {path} cannot be read ({reason}): name a JSON file.") from None
    except msgspec.DecodeError:
        raise ConfigError(f'--request-template {path} is no JSON object: write one such as {{"temperature": 0.7}}.') from None
    types = {field.name: field.type for field in msgspec.structs.fields(ChatCompletionRequest) if field.name not in _NOT_FOR_ALL}
    for name, value in template.items():
        if name not in types:
            hint = suggestion(name, types, what="fields")
            raise ConfigError(f"--request-template {path}: no request takes a default for {name!r}: {hint}")
        try:
            template[name] = msgspec.convert(value, types[name])
        except msgspec.ValidationError as error:
            raise ConfigError(f"--request-template {path}: {name} does not fit ({error}); correct it.") from None
    if (limit := template.pop("max_completion_tokens", None)) is not None:
        template.setdefault("max_tokens", limit)
    return template


def with_defaults(model: type[T], template: Mapping[str, Any]) -> type[T]:
    """A Struct type like ``model`` with other defaults; the decoder fills them in. Fields that it lacks are passed over."""
    fields = [(field.name, field.type, template[field.name]) for field in msgspec.structs.fields(model) if field.name in template]
    if not fields:
        return model
    return msgspec.defstruct(model.__name__, fields, bases=(model,), module=model.__module__, frozen=True, kw_only=True)  # type: ignore[return-value]
