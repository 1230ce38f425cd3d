"""One sequence of the mocker and the tokens it makes up.

The next token is a hash of all ids before it, wherever the prompt ends and the output begins, so a stream that goes on elsewhere
(prompt and output so far sent again) goes on with the same tokens. The hash is the number whose digits in base 2³² are the ids
after a leading 1, modulo a prime: one division a token, and a whole prompt in one division of long integers. A request with a
temperature has another leading number, its seed's or its own, so that choices differ.
"""

from __future__ import annotations

import math
import sys
from array import array
from collections.abc import Callable, Sequence

from dynamo_core.contracts import EngineRequest, EngineSink, TokenLogprob
from dynamo_core.kv import hashing, scheduler

__all__ = ["PRIME", "Stream", "Vocabulary", "hash_tokens"]

PRIME = 10**18 + 3

_WORD = next(code for code in "IL" if array(code).itemsize == 4)


def hash_tokens(token_ids: Sequence[int], lead: bytes = b"\1") -> int:
    """The hash of a sequence of ids; to append ``t`` is ``(h << 32 | t) % PRIME``."""
    digits = array(_WORD, token_ids)
    if sys.byteorder == "little":
        digits.byteswap()
    return int.from_bytes(lead + digits.tobytes(), "big") % PRIME


def lead_of(request: EngineRequest) -> bytes:
    """What the hash of the request's tokens begins with; the same on every worker that serves it."""
    sampling = request.sampling
    if not sampling.temperature:
        return b"\1"
    return b"\1" + (request.id if sampling.seed is None else str(sampling.seed)).encode()


class Vocabulary:
    """The ids that are drawn: from the middle of the vocabulary to seven eighths of it.

    Special tokens and single bytes stand at its beginning or its end, so these decode to readable text in nearly all tokenizers.
    """

    __slots__ = ("low", "span")

    def __init__(self, size: int) -> None:
        self.low = size // 2
        self.span = max(1, size * 7 // 8 - self.low)


class Stream(scheduler.Sequence):
    """A sequence with its sink. ``plain``: nothing has to be looked at but the token itself."""

    __slots__ = (
        "arrival", "block_size", "emit", "first_token", "forbidden", "keep", "plain", "request", "sampled", "seed", "sink",
        "state", "stops", "tail", "unregister",
    )  # fmt: skip

    def __init__(
        self, request: EngineRequest, sink: EngineSink, *, block_size: int, caching: bool, max_tokens: int, arrival: float
    ) -> None:
        prompt = request.token_ids
        seed = hashing.hash_seed(request.lora, request.cache_salt) if caching else None
        hashes = hashing.sequence_hashes(prompt, block_size, lora=request.lora, salt=request.cache_salt) if caching else ()
        super().__init__(len(prompt), max_tokens, hashes)
        self.request = request
        self.sink = sink
        self.emit = sink.token
        self.seed = seed
        self.block_size = block_size
        self.tail = list(prompt[len(hashes) * block_size :]) if caching else []
        """Ids after the last named block."""
        self.keep: Callable[[int], None] = self.tail.append
        self.state = hash_tokens(prompt, lead_of(request))
        self.sampled = 0
        """Tokens emitted; kept up to date only where ``plain`` is false."""
        self.forbidden: frozenset[int] = frozenset()
        self.stops: frozenset[int] = frozenset(request.stop.stop_token_ids)
        self.plain = True
        self.arrival = arrival
        self.first_token: float | None = None
        self.unregister: Callable[[], None] | None = None

    def restrict(self, vocabulary: Vocabulary, *, emit_eos: bool) -> None:
        """Settle which tokens are never drawn and which end the sequence, and whether any can be drawn at all."""
        eos = frozenset(self.request.eos_token_ids)
        if not emit_eos:
            self.forbidden = eos - self.stops
        elif not self.request.stop.ignore_eos:
            self.stops |= eos
        inside = range(vocabulary.low, vocabulary.low + vocabulary.span)
        self.plain = self.request.logprobs is None and not any(t in inside for t in self.forbidden | self.stops)

    def sample(self, vocabulary: Vocabulary) -> int:
        """Draw the next token; the caller accepts it or ends the sequence."""
        offset = self.state % vocabulary.span
        token = vocabulary.low + offset
        for _ in range(vocabulary.span if token in self.forbidden else 0):
            offset = (offset + 1) % vocabulary.span
            token = vocabulary.low + offset
            if token not in self.forbidden:
                break
        return token

    def accept(self, token: int) -> None:
        self.state = (self.state << 32 | token) % PRIME
        self.keep(token)
        self.sampled += 1

    def logprob(self, token: int, vocabulary: Vocabulary) -> TokenLogprob:
        """A made-up distribution that falls off geometrically from the drawn token."""
        count = self.request.logprobs or 0
        p = 0.5 + 0.45 * (self.state % 9973) / 9973
        best, fall = math.log(p), math.log1p(-p)
        start = token - vocabulary.low
        count = min(count, vocabulary.span)
        top = tuple((vocabulary.low + (start + i) % vocabulary.span, best + i * fall) for i in range(count))
        return TokenLogprob(token, best, top)

    def next_hash(self) -> int | None:
        if self.seed is None:
            return None
        size = self.block_size
        if len(self.tail) < size:
            return None
        block = hashing.block_hash(self.tail[:size], self.seed)
        del self.tail[:size]
        return hashing.chain((block,), self.hashes[-1] if self.hashes else None)[0]
