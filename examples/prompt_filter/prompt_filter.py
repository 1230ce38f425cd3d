"""Refuse prompts that hold a forbidden word, before they are routed."""

import re
from typing import Any

import msgspec

from dynamo_core import hookimpl
from dynamo_core.contracts import PreparedRequest
from dynamo_core.errors import InvalidRequest


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    words: tuple[str, ...] = ("password",)
    """Whole words, in any case."""


def texts(value: Any) -> list[str]:
    """All text in a list of messages, content parts or prompts."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return texts(value.get("content") or value.get("text"))
    return [text for item in value for text in texts(item)] if isinstance(value, (list, tuple)) else []


@hookimpl
def dynamo_config() -> type[Config]:
    return Config


@hookimpl
def dynamo_prepare(request: PreparedRequest, config: Config) -> None:
    field = "messages" if request.endpoint == "chat" else "prompt"
    for text in texts(getattr(request.body, field, None)):
        for word in config.words:
            if re.search(rf"\b{re.escape(word)}\b", text, re.IGNORECASE):
                raise InvalidRequest("The prompt holds a word that is not allowed here.", param=field, code="prompt_refused")
