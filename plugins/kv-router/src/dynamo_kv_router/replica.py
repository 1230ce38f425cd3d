"""What routers of other frontends are told of a request, and what is made of theirs."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from dynamo_core.contracts import ForeignRequest
from dynamo_core.kv import PromptHashes
from dynamo_kv_router.books import Books
from dynamo_kv_router.caches import Caches

__all__ = ["note_of", "take_foreign"]

_PROMISED, _ASSUMED = 128, 2048
"""Blocks of a prompt that others are told of, 9 bytes each: few where KV events will tell the rest in a moment, and hashing them
costs more than a choice; many where nobody will."""


def note_of(prompt: PromptHashes, *, assumed: bool) -> partial[list[int]]:
    """For :attr:`Route.note <dynamo_core.contracts.Route.note>`: the prompt's first blocks, which its worker will have.
    ``assumed``: no KV event will say so."""
    return partial(_first_blocks, prompt, _ASSUMED if assumed else _PROMISED)


def take_foreign(books: Books, caches: Caches, request: ForeignRequest, worker_id: int, block_size: int) -> None:
    """Book another frontend's request as one's own. A rank that was not told counts as the first."""
    places = books.of(worker_id)
    rank = request.dp_rank or 0
    if rank >= len(places):
        return
    tokens = request.prompt_tokens
    new_tokens = max(1, tokens - request.overlap_blocks * block_size)
    key = (request, worker_id)
    books.tick()
    prompt = PromptHashes.of(_hashes(request.note))
    own_ms = new_tokens * books.speed.token_ms
    books.begin(key, places[rank], tokens, new_tokens, own_ms, pieces=caches.pieces(prompt))
    caches.sent(key, places[rank], prompt, books.clock.now)


def _first_blocks(prompt: PromptHashes, limit: int) -> list[int]:
    return prompt.upto(min(prompt.count, limit))[:limit]


def _hashes(note: object) -> Sequence[int]:
    """What another frontend says is checked: its router may be another one."""
    return [block for block in note if isinstance(block, int)] if isinstance(note, list) else ()
