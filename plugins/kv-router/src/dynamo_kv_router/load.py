"""What a router knows of one place's load: its own dispatches and what became of them."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import NamedTuple

from dynamo_core.contracts import WorkerView
from dynamo_kv_router.cost import Clock, LoadRow
from dynamo_kv_router.weights import Weights

__all__ = ["NO_PIECES", "Observation", "Pieces", "PlaceLoad"]

_SAME_STEP_MS = 1.0
"""First tokens that come closer together than this come from one step."""


class Observation(NamedTuple):
    tokens: int
    ms: float


class Pieces(NamedTuple):
    """Equal parts of a prompt from its start, by names that tell them apart together with all before them."""

    names: Sequence[int]
    tokens: int
    """Of each."""


NO_PIECES = Pieces((), 0)
_NO_YOUTH = (0.0, 0.0, 0.0)


class PlaceLoad:
    """A data-parallel rank of a worker; nearly always the whole worker.

    Counts are exact: each ``begin`` is answered by one ``end``, with at most one ``first_token`` between.
    """

    __slots__ = (
        "_area", "_area_at", "_measured", "_measured_at", "_measured_from", "_next_ms", "_pieces", "_since", "batch", "behind_ms",
        "busy_until", "capacity", "computed_ms", "given", "held", "id", "place", "prefill_tokens", "prefilling", "rank",
        "requests", "several", "taints", "tokens", "view", "youth",
    )  # fmt: skip

    def __init__(self, worker: WorkerView, rank: int = 0) -> None:
        self.id = worker.id
        """Of the worker."""
        self.rank = rank
        self.several = worker.card.data_parallel_size > 1
        """The worker has other ranks."""
        self.place = 0
        """In the router's lists; changes when workers come and go."""
        self.view = worker
        self.taints = frozenset(worker.card.taints)
        self.capacity = worker.card.total_kv_blocks * worker.card.block_size
        """Tokens; 0: unknown."""
        self.batch = worker.card.max_num_batched_tokens
        """Tokens that a step computes at most; 0: unknown."""
        self.given = 0
        """When it last got a request: a running number."""
        self.requests = 0
        self.tokens = 0
        """Their prompts, and what they are expected to generate if that is counted."""
        self.held = 0
        """What these take of the cache: what several of them have in common counts once."""
        self._pieces: dict[int, int] = {}
        """Requests by the piece that they hold."""
        self.prefilling = 0
        """Requests without first token."""
        self.prefill_tokens = 0
        """What is to be computed of their prompts."""
        self.busy_until = 0.0
        """When the prompts should be done that were sent by then; in the past when they are overdue, 0 without prompts."""
        self.behind_ms = 0.0
        """What was sent to an overdue place, and is to be computed after what it has not done yet."""
        self.youth = _NO_YOUTH
        self._since = 0.0
        """The last sign of life while prompts are computed, or when the first of them was sent."""
        self._next_ms = 0.0
        """From then until the next sign of life is due: what is sent meanwhile does not put it off."""
        self.computed_ms = 0.0
        """Of prompts whose first token has come, since ever."""
        self._area = self._area_at = 0.0
        self._measured = 0
        self._measured_from = self._measured_at = 0.0

    @property
    def name(self) -> int | str:
        """For people."""
        return f"{self.id}/{self.rank}" if self.several else self.id

    def row(self, weights: Weights, weight: float, stay_ms: float) -> LoadRow:
        """For :func:`~dynamo_kv_router.cost.costs`; made anew whenever something of the load changed."""
        prefilling, busy_until, behind = (self.prefilling, self.busy_until, self.behind_ms) if weights.prefills else (0, 0.0, 0.0)
        crowd = weight * (weights.crowd * self.requests + weights.youth * prefilling)
        tokens, held = (self.tokens, self.held) if weights.holdings else (0, 0)
        room = self.capacity * (1 - weights.spare) - held if self.capacity and weights.holdings else inf
        weighed = tokens + weights.per_request * self.requests
        drain, stay = (stay_ms / held, stay_ms) if held else (0.0, 0.0)
        youth = self.youth
        if youth != _NO_YOUTH:
            y1, y2, y3 = youth
            scale = weight * weights.youth
            youth = (y1 * scale, y2 * scale, y3 * scale)
        return LoadRow(self.place, busy_until, behind, crowd, weighed, room, drain, stay, youth)

    def wait_ms(self, now: float) -> float:
        """Until it should be done with the prompts that were sent there, as :func:`~dynamo_kv_router.cost.costs` has it."""
        if not self.busy_until:
            return 0.0
        left = self.busy_until - now
        return left if left > 0 else self.behind_ms - left

    def slowness(self, now: float, step_ms: float) -> float:
        """How many times as long as it should, ``step_ms`` at least, its next first token takes already; 0 where none is due."""
        return (now - self._since) / max(self._next_ms, step_ms, _SAME_STEP_MS) if self.prefilling else 0.0

    def slower(self, times: float, now: float) -> None:
        """Prompts are believed to take so many times as long."""
        if self.busy_until:
            self.busy_until = self._since + (self.busy_until - self._since) * times
            self.behind_ms *= times
            self._next_ms *= times
            if self.busy_until >= now:
                self.busy_until, self.behind_ms = self.busy_until + self.behind_ms, 0.0

    def begin(self, tokens: int, new_tokens: int, own_ms: float, now: float, pieces: Pieces = NO_PIECES) -> None:
        """A request was sent there that will hold ``tokens``, the ``pieces`` among them. O(pieces)."""
        self.area(now)
        self.requests += 1
        self.tokens += tokens
        known = self._pieces
        for name in pieces.names:
            holders = known.get(name, 0)
            known[name] = holders + 1
            if holders:
                tokens -= pieces.tokens
        self.held += tokens
        if not self.prefilling:
            self._since, self._next_ms, self.busy_until = now, own_ms, now + own_ms
        elif self.busy_until < now:
            self.behind_ms += own_ms  # what is sent there does not make it less late
        else:
            self.busy_until += own_ms
        self.prefilling += 1
        self.prefill_tokens += new_tokens

    def would_hold(self, tokens: int, pieces: Pieces) -> int:
        """Tokens that are held once such a request has begun."""
        return self.held + tokens - pieces.tokens * sum(name in self._pieces for name in pieces.names)

    def first_token(self, new_tokens: int, own_ms: float, dispatched: float, clock: Clock, token_ms: float) -> None:
        """Its prompt is done: it is a stream from here on. Ask first what was :meth:`measured`."""
        now = clock.now
        self.computed_ms += own_ms
        self.prefilling -= 1
        self.prefill_tokens -= new_tokens
        self._since, self.behind_ms = now, 0.0
        self._next_ms = token_ms * min(self.prefill_tokens, self.batch or self.prefill_tokens)
        self.busy_until = now + token_ms * self.prefill_tokens if self.prefilling else 0.0
        a, b, c = clock.youth(now)
        y1, y2, y3 = self.youth
        self.youth = (y1 + a, y2 + b, y3 + c)
        if self._measured:
            self._measured += new_tokens
        else:
            self._measured = new_tokens
            self._measured_from = max(dispatched, self._measured_at)
        self._measured_at = now

    def area(self, now: float) -> float:
        """Tokens × milliseconds that ran there, since ever."""
        self._area += self.tokens * (now - self._area_at)
        self._area_at = now
        return self._area

    def grow(self, tokens: int, now: float) -> None:
        """A request holds so many more."""
        self.area(now)
        self.tokens += tokens
        self.held += tokens

    def end(
        self, tokens: int, new_tokens: int, own_ms: float, first_token: float | None, clock: Clock, pieces: Pieces = NO_PIECES
    ) -> None:
        """The request is gone, in whatever way, and gives back ``tokens`` and the ``pieces`` that it began with. ``own_ms``: what
        its prompt would take by what is believed now."""
        self.area(clock.now)
        self.requests -= 1
        self.tokens -= tokens
        known = self._pieces
        for name in pieces.names:
            holders = known[name] - 1
            if holders:
                known[name] = holders
                tokens -= pieces.tokens
            else:
                del known[name]
        self.held -= tokens
        if first_token is None:
            self._never_computed(new_tokens, own_ms, clock.now)
        elif self.requests == self.prefilling:
            self.youth = _NO_YOUTH  # no streams: exactly nothing, so that idle workers tie
        else:
            a, b, c = clock.youth(first_token)
            y1, y2, y3 = self.youth
            self.youth = (y1 - a, y2 - b, y3 - c)

    def measured(self, now: float) -> Observation | None:
        """The last step that was seen to finish prompts, once it is clear that no more first tokens belong to it."""
        if not self._measured or now - self._measured_at < _SAME_STEP_MS:
            return None
        seen = Observation(self._measured, self._measured_at - self._measured_from)
        self._measured = 0
        return seen

    def fade(self, factors: tuple[float, ...]) -> None:
        """The clock's reference time moved."""
        y1, y2, y3 = self.youth
        self.youth = (y1 * factors[0], y2 * factors[1], y3 * factors[2])

    def _never_computed(self, new_tokens: int, own_ms: float, now: float) -> None:
        """No sign of life of the place: it stays as late as it is."""
        self.prefilling -= 1
        self.prefill_tokens -= new_tokens
        if not self.prefilling:
            self.busy_until = self.behind_ms = 0.0
        elif self.busy_until < now:
            self.behind_ms = max(0.0, self.behind_ms - own_ms)
        else:
            self.busy_until = max(now, self.busy_until - own_ms)
