"""The parser contract: tells tool calls and reasoning from the rest of a model's text. Alpha: no endpoint uses it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import msgspec

__all__ = ["OutputParser", "ParsedText", "ParserContext", "ToolCallPart"]


class ParserContext(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of one choice of one request when its parser is made."""

    model: str
    tools: Sequence[Mapping[str, Any]] = ()
    """As the client sent them; empty for a reasoning parser."""
    in_reasoning: bool = False
    """The rendered prompt ends within the reasoning, as with templates that open it themselves."""


class ToolCallPart(msgspec.Struct, frozen=True, kw_only=True):
    """Some more of one tool call. The arguments of a call are all its parts joined: JSON text."""

    index: int
    """From 0, in the order of the model's text."""
    id: str = ""
    """On the first part, as is ``name``; empty: the server makes one."""
    name: str = ""
    arguments: str = ""


class ParsedText(msgspec.Struct, frozen=True):
    """What some text turned out to be."""

    content: str = ""
    reasoning: str = ""
    tool_calls: tuple[ToolCallPart, ...] = ()


class OutputParser(Protocol):
    """Made by a :class:`~dynamo_core.specs.ParserSpec` factory, one for each choice.

    Never raises for what a model writes: text that begins like a call and is none is content. Parsing must not depend on how
    the text was cut into pieces.
    """

    def push(self, text: str) -> ParsedText:
        """More text. Holds back only what could be the beginning of a mark. On the hot path: once a token."""
        ...

    def finish(self) -> ParsedText:
        """No more text comes: what was held back."""
        ...
