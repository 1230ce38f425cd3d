"""What places would carry if a prompt were sent there."""

from __future__ import annotations

from collections.abc import Container

from dynamo_core.contracts import PotentialLoad, RouteRequest
from dynamo_kv_router.books import Books
from dynamo_kv_router.caches import Caches

__all__ = ["outlook"]


def outlook(
    books: Books, caches: Caches, request: RouteRequest, workers: Container[int], block_size: int
) -> dict[int, list[PotentialLoad]]:
    tokens = len(request.token_ids)
    prompt = caches.prompt(request)
    overlap = caches.overlap(prompt, tokens, books.places)
    pieces = caches.pieces(prompt)
    loads: dict[int, list[PotentialLoad]] = {}
    for place in books.places:
        if place.id in workers:
            load = PotentialLoad(
                dp_rank=place.rank,
                prefill_tokens=place.prefill_tokens + overlap.new_tokens[place.place],
                decode_blocks=-(-place.would_hold(tokens, pieces) // block_size),
                requests=place.requests,
            )
            loads.setdefault(place.id, []).append(load)
    return loads
