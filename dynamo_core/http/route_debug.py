"""Why a request went where it went, for who asks: ``x-dynamo-debug: route``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

__all__ = ["route_text", "wants_route"]

_HEADER = "x-dynamo-debug"
_LIMIT = 4096
"""Bytes of the header; clients and proxies refuse long ones."""


def wants_route(headers: Mapping[str, str]) -> bool:
    """The request has ``x-dynamo-debug: route``; several words are separated by commas."""
    wanted = headers.get(_HEADER)
    return wanted is not None and "route" in (word.strip() for word in wanted.split(","))


def route_text(routes: Sequence[Mapping[str, Any]]) -> bytes:
    """One JSON object a leg, in a list: ``worker`` and the router's own ``explain``. ASCII, and left out from the end if long."""
    shown: list[bytes] = []
    size = 2
    for route in routes:
        text = _json(route)
        size += len(text) + 1
        if size > _LIMIT:
            break
        shown.append(text)
    return b"[" + b",".join(shown) + b"]"


def _json(route: Mapping[str, Any]) -> bytes:
    try:
        text = msgspec.json.encode(route)
    except (TypeError, ValueError, OverflowError):  # a router may explain itself in whatever it likes
        text = msgspec.json.encode({"worker": route["worker"], "explain": repr(route.get("explain"))})
    return text if text.isascii() else text.decode().encode("ascii", "backslashreplace")
