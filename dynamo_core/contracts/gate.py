"""Who asks, what they may do, and what is told of each request: the records of the request hooks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import msgspec

__all__ = ["HttpRequestInfo", "PreparedRequest", "Principal", "RequestSummary"]


class Principal(msgspec.Struct, frozen=True, kw_only=True):
    """Who is asking."""

    id: str
    tenant: str = ""
    scopes: frozenset[str] = frozenset()
    models: frozenset[str] | None = None
    """Models that this principal may use; ``None``: all."""
    service_class: str = "default"


class HttpRequestInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A request as it arrived, before its body is looked at."""

    id: str
    method: str
    path: str
    headers: Mapping[str, str]
    """Names in lower case; the last value of a repeated header."""
    client: str
    """The peer's address."""


class PreparedRequest(msgspec.Struct, kw_only=True):
    """A generation request after templating and tokenizing, before routing. ``dynamo_prepare`` may change it in place."""

    id: str
    model: str
    endpoint: Literal["chat", "completions"]
    principal: Principal | None
    headers: Mapping[str, str]
    body: Any
    """The decoded client request (for chat: with ``messages``). Changing it here is too late; change ``token_ids``."""
    token_ids: list[int]
    max_tokens: int
    priority: int = 0


class RequestSummary(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one request; told exactly once, whatever happened."""

    id: str
    model: str
    """As the client named it; ``""`` when the request did not get that far."""
    endpoint: str
    principal: Principal | None
    status: int
    """HTTP status, 499 when the client went away; an error after the 200 keeps its own status here."""
    outcome: Literal["completed", "cancelled", "failed", "rejected"]
    error: str | None = None
    """The error's code, e.g. ``model_not_found``."""
    stream: bool = False
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    worker_ids: tuple[int, ...] = ()
    """In order of use; more than one after a migration."""
    ttft: float | None = None
    """Seconds from arrival to the first token."""
    duration: float = 0.0
    """Seconds from arrival to the end."""
    finish_reasons: tuple[str, ...] = ()
