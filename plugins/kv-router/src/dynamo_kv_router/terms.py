"""What prices are made with: the router's settings, or others that a program wants for one request."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

from dynamo_core.errors import InvalidRequest
from dynamo_kv_router.books import Books
from dynamo_kv_router.config import KvRouterConfig
from dynamo_kv_router.cost import LoadRow
from dynamo_kv_router.credit import Credit
from dynamo_kv_router.weights import Weights

__all__ = ["Terms", "other_terms"]

_CHANGEABLE = frozenset(
    {
        "overlap_score_weight",
        "router_kv_overlap_score_credit",
        "router_kv_overlap_score_credit_decay",
        "router_decode_active_request_weight",
        "router_temperature",
        "router_track_prefill_tokens",
    }
)
"""The rest says what is kept, which one request cannot change."""


class Terms(NamedTuple):
    config: KvRouterConfig
    credit: Credit | None
    rows: list[LoadRow]
    """One a place."""


def other_terms(
    settings: Mapping[str, Any], config: KvRouterConfig, weights: Weights, books: Books, block_size: int
) -> Terms | InvalidRequest:
    """``config`` with ``settings`` instead of its own, and what follows from it. O(places)."""
    fixed = sorted(settings.keys() - _CHANGEABLE)
    if fixed:
        return InvalidRequest(
            f"{fixed[0]!r} of kv-router cannot be set for one request; these can: {', '.join(sorted(_CHANGEABLE))}",
            param="router_config_override",
        )
    try:
        config = msgspec.convert({**msgspec.structs.asdict(config), **settings}, KvRouterConfig)
    except msgspec.ValidationError as error:
        return InvalidRequest(f"router_config_override: {error}", param="router_config_override")
    weights = weights.configured(config, block_size)
    rows = [place.row(weights, config.overlap_score_weight, books.stay.value) for place in books.places]
    return Terms(config, Credit.of(config, block_size), rows)
