"""The output-filter contract: changes the text of one stream on its way to the client.

The smallest filter::

    class Shout:
        def push(self, text): return text.upper()
        def finish(self): return ""

A filter sees the text after stop strings were applied, choice by choice, and before it is encoded for the client. What it takes
out still counts as generated. A filtered choice has no log-probabilities, since they would tell what the filter took out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, Protocol

import msgspec

from dynamo_core.contracts.gate import Principal

__all__ = ["OutputFilter", "OutputStream"]


class OutputStream(msgspec.Struct, frozen=True, kw_only=True):
    """One choice of one request, before its first token. Unary responses are streams, too, that are collected."""

    request_id: str
    model: str
    endpoint: Literal["chat", "completions"]
    headers: Mapping[str, str]
    """The client's HTTP headers, names in lower case."""
    principal: Principal | None
    index: int
    """Of the choice."""


class OutputFilter(Protocol):
    """Lives as long as its stream. Called on the event loop, on the hot path: it must not block.

    A :class:`~dynamo_core.errors.DynamoError` ends the request with that error; any other exception ends it with 500.
    """

    def push(self, text: str) -> str:
        """Some more text (once a token, never empty) → what may be told of the text so far; ``""`` holds back."""
        ...

    def finish(self) -> str:
        """The text is complete: what was held back. Not called for a stream that failed or was cancelled."""
        ...
