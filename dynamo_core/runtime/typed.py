"""Requests and responses of declared types: pydantic models, msgspec structs and dataclasses."""

from __future__ import annotations

import dataclasses
from typing import Any

import msgspec

from dynamo_core.errors import EngineError, InvalidRequest

__all__ = ["InvalidPayload", "parse_request", "plain_response"]


class InvalidPayload(InvalidRequest, ValueError):
    """What a caller sent does not fit the declared type. A ``ValueError`` where the handler is called directly."""


def parse_request(kind: Any, request: Any) -> Any:
    """Text is read as JSON, a mapping as fields; what is of the type already, and types that cannot be checked, pass through.

    pydantic's models are recognised by their methods, so that pydantic need not be installed.
    """
    try:
        if isinstance(request, (str, bytes)):
            if hasattr(kind, "model_validate_json"):
                return kind.model_validate_json(request)
            if _is_struct(kind):
                return msgspec.json.decode(request, type=kind)
        elif isinstance(request, dict):
            if hasattr(kind, "model_validate"):
                return kind.model_validate(request)
            if _is_struct(kind):
                return msgspec.convert(request, kind)
    except (ValueError, msgspec.MsgspecError) as error:
        raise InvalidPayload(_sentence("the request", kind, error)) from None
    return request


def plain_response(kind: Any, item: Any) -> Any:
    """``item`` as it travels. Raises :class:`~dynamo_core.errors.EngineError` for what is not of the declared type."""
    try:
        if hasattr(kind, "model_validate"):
            model = item if isinstance(item, kind) else kind.model_validate(item)
            return model.model_dump() if hasattr(model, "model_dump") else item
        if _is_struct(kind):
            # A round trip: a struct that was made by hand was never checked.
            plain = msgspec.to_builtins(item)
            msgspec.convert(plain, kind)
            return plain
    except (ValueError, TypeError, msgspec.MsgspecError) as error:
        raise EngineError(_sentence("a response", kind, error)) from None
    return item.model_dump() if hasattr(item, "model_dump") else item


def _is_struct(kind: Any) -> bool:
    return isinstance(kind, type) and (issubclass(kind, msgspec.Struct) or dataclasses.is_dataclass(kind))


def _sentence(what: str, kind: Any, error: Exception) -> str:
    return f"{what} is no {getattr(kind, '__name__', kind)}: {error}"
