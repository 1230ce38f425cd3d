"""What sending a request to a worker costs, in milliseconds. The lowest wins.

For a prompt of L tokens of which k blocks are cached on the worker::

    new   = max(1, L − k × block_size)
    wait  = overhead_ms, for a step of one's own, and until the prompts already sent there should be done. When they are overdue,
            as long again as they are late, and then what was sent there since: a worker that hangs gets dearer, not cheaper,
            and none is cheaper than an idle one
    own   = token_ms × new
    young = requests without first token + Σ over streams of tau ÷ (tau + age since first token)
    load  = prompt tokens running there × (presence × token_ms + decode × slowed_ms)
    room  = until the cache has room for the prompt: 0 if it has, else stay_ms × (tokens too many ÷ tokens held there), stay_ms at
            most, because what runs there gives back its tokens evenly while it stays. What several running requests have in
            common is held once

    cost  = wait + weight × own × (affinity + crowd × requests + youth × young) + load + room

``affinity`` is between 1 and its weight, by how scarce room in the caches is (:mod:`dynamo_kv_router.scarcity`). ``token_ms`` and
``overhead_ms`` are learned (:mod:`dynamo_kv_router.speed`), and so are ``stay_ms``, the mean time that requests spend on a
worker, and ``slowed_ms``, what a token that runs beside an answer adds to the time of decoding it; ``weight`` is
``overlap_score_weight``. A stream slows others down while it is young because it comes with a prompt; the sum over streams is
kept in three exponentials, whose sum is within 0.025 of 1 ÷ (1 + x) everywhere, so that it costs the same for one stream and a
thousand.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import exp, tanh
from typing import TYPE_CHECKING, NamedTuple

from dynamo_kv_router.speed import PrefillSpeed
from dynamo_kv_router.weights import Weights

if TYPE_CHECKING:
    from dynamo_kv_router.load import PlaceLoad

__all__ = ["YOUTH_RATES", "YOUTH_SHARES", "Clock", "LoadRow", "costs", "preferred"]

YOUTH_RATES = (0.0169, 0.1917, 1.1867)
YOUTH_SHARES = (0.0516, 0.3192, 0.6292)
"""``Σ share × exp(−rate × x)``, fitted to ``1 ÷ (1 + x)`` over 0 ≤ x ≤ 150."""


class LoadRow(NamedTuple):
    """One place's load as :func:`costs` wants it: what does not depend on the request or the time."""

    place: int
    """Where lists by place have it."""
    busy_until: float
    """Milliseconds on the router's clock; 0 when no prompt is being computed."""
    behind: float
    """Milliseconds of prompts that were sent there since it was overdue."""
    crowd: float
    """``crowd × requests + youth × requests without first token``."""
    load: float
    """Tokens that run there."""
    room: float
    """Tokens that the cache can take at once."""
    drain: float
    """Milliseconds until it can take one more."""
    stay: float
    """Milliseconds until it can take anything."""
    youth: tuple[float, float, float]
    """``youth`` × the three exponentials, at the clock's reference time."""


class Clock:
    """The time as ages want it: ``fading`` is what became of the three exponentials since the reference time.

    Sums of contributions ``share × exp(rate × (first token − reference) ÷ tau)`` only change when streams come and go.
    """

    __slots__ = ("_faded", "_fading", "_rates", "now", "reference")

    _REBASE = 20.0
    """Exponent at which the reference time moves, long before floats lose digits that matter."""

    def __init__(self, weights: Weights, now: float) -> None:
        r1, r2, r3 = YOUTH_RATES
        self._rates = (r1 / weights.tau_ms, r2 / weights.tau_ms, r3 / weights.tau_ms)
        self.now = self.reference = now
        self._faded, self._fading = now, (1.0, 1.0, 1.0)
        """The time of the latest look at ``fading``, and what it was."""

    def tick(self, now: float) -> tuple[float, float, float] | None:
        """Set the time. When the reference has to move, returns the factors that all sums must be multiplied by."""
        self.now = now
        if self._rates[2] * (now - self.reference) < self._REBASE:
            return None
        factors = self.fading
        self.reference, self._faded, self._fading = now, now, (1.0, 1.0, 1.0)
        return factors

    @property
    def fading(self) -> tuple[float, float, float]:
        if self._faded != self.now:
            r1, r2, r3 = self._rates
            age = self.now - self.reference
            self._faded, self._fading = self.now, (exp(-r1 * age), exp(-r2 * age), exp(-r3 * age))
        return self._fading

    def youth(self, first_token: float) -> tuple[float, float, float]:
        """What a stream adds to the sums, and takes away when it ends."""
        r1, r2, r3 = self._rates
        s1, s2, s3 = YOUTH_SHARES
        age = first_token - self.reference
        return s1 * exp(r1 * age), s2 * exp(r2 * age), s3 * exp(r3 * age)


def costs(
    rows: Iterable[LoadRow],
    new: Sequence[float],
    tokens: int,
    clock: Clock,
    speed: PrefillSpeed,
    affinity: float,
    running_ms: float,
) -> list[float]:
    """One cost a row. ``new`` has by place the tokens that would be computed there. 0.4 µs a row."""
    overhead_ms, token_ms = speed.overhead_ms, speed.token_ms
    now = clock.now
    f1, f2, f3 = clock.fading
    result: list[float] = []
    add = result.append
    for place, busy_until, behind, crowd, load, room, drain, stay, (y1, y2, y3) in rows:
        wait = overhead_ms
        if busy_until:
            wait += busy_until - now if busy_until > now else now - busy_until + behind
        if tokens > room:
            wait += min((tokens - room) * drain, stay)
        times = affinity + crowd
        if y1 or y2 or y3:  # there are streams; half of the arithmetic
            times += y1 * f1
            times += y2 * f2
            times += y3 * f3
        add(wait + new[place] * token_ms * times + running_ms * load)
    return result


def preferred(price: Sequence[float], candidates: Sequence[PlaceLoad], taints: Mapping[str, float]) -> list[float]:
    """The prices, times ``exp(−tanh(sum of the weights of a worker's taints))``: from about a third to nearly three times."""
    return [
        cost * exp(-tanh(sum(weight for taint, weight in taints.items() if taint in place.taints)))
        for cost, place in zip(price, candidates, strict=True)
    ]
