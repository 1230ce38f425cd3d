"""What a frontend and a router that runs as a process of its own say to each other.

A frontend opens one stream to the endpoint ``place`` a request. Its first item is a :class:`Placement`, as soon as the router has
decided; from then on the request counts as running, until a :class:`Progress` on the endpoint ``progress`` ends it, or the stream
breaks: a frontend that dies takes its requests along.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from dynamo_core.contracts.router import NO_HINTS, Outcome, RoutingHints

__all__ = ["PlaceRequest", "Placement", "Progress"]


class PlaceRequest(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A :class:`~dynamo_core.contracts.RouteRequest` on its way."""

    number: int
    """The frontend's name for it."""
    id: str
    token_ids: list[int]
    max_tokens: int = 0
    excluded: tuple[int, ...] = ()
    pinned: int | None = None
    priority: int = 0
    lora: str | None = None
    cache_salt: str | None = None
    session: str | None = None
    headers: Mapping[str, str] = {}
    hints: RoutingHints = NO_HINTS


class Placement(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    worker_id: int
    dp_rank: int | None = None
    overlap_blocks: int = 0
    explain: Any = None


class Progress(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Of several requests, by their numbers."""

    answered: tuple[int, ...] = ()
    """They gave their first token."""
    ended: tuple[tuple[int, Outcome], ...] = ()
