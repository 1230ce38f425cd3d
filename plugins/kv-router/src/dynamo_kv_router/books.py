"""The books: which request was sent to which place, and what became of it."""

from __future__ import annotations

from collections.abc import Callable, Hashable, KeysView

from dynamo_core.contracts import WorkerView
from dynamo_kv_router.config import KvRouterConfig
from dynamo_kv_router.cost import Clock, LoadRow
from dynamo_kv_router.load import NO_PIECES, Observation, Pieces, PlaceLoad
from dynamo_kv_router.newcomers import Newcomers
from dynamo_kv_router.speed import DecodeSpeed, FadingMean, PrefillSpeed
from dynamo_kv_router.weights import Weights

__all__ = ["Books", "Sent"]

_OUTPUT_STEP = 16
"""Tokens."""
_GUESS = 0.86
"""What a running token costs an answer until answers were seen, in times that it takes to compute one."""

_DOUBT = 4.0
"""In times of what prompts should take; what is late by less may be a full step."""
_FURTHER = 1.1
"""From then on: between two corrections the latest to begin gets all."""


class Sent:
    """A request on a place, from ``begin`` to ``end``."""

    __slots__ = (
        "area", "at", "computed_ms", "expected", "first_token", "generated", "new_tokens", "own_ms", "pieces", "place", "tokens",
    )  # fmt: skip

    def __init__(
        self, place: PlaceLoad, tokens: int, new_tokens: int, own_ms: float, expected: int, at: float, pieces: Pieces
    ) -> None:
        self.place = place
        self.pieces = pieces
        self.tokens = tokens
        """Of the prompt."""
        self.new_tokens = new_tokens
        self.own_ms = own_ms
        self.expected = expected
        """Tokens of the answer that are counted as held."""
        self.generated = 0
        self.at = at
        self.first_token: float | None = None
        self.area = self.computed_ms = 0.0
        """Of the place, at the first token."""


class Books:
    """One account a place: a data-parallel rank of a worker, and nearly always the whole worker.

    Keys name requests; whoever sends one chooses its key. Each ``begin`` is answered by one ``end``, with at most one
    ``first_token`` between; keys that are not in the books are ignored.
    """

    def __init__(self, config: KvRouterConfig, weights: Weights, seconds: Callable[[], float]) -> None:
        self._config = config
        self._weights = weights
        self._seconds = seconds
        self.clock = Clock(weights, seconds() * 1000)
        self.speed = PrefillSpeed()
        self.decode = DecodeSpeed()
        self._running: float | None = None
        """``running_ms``, until something is learned."""
        self.stay = FadingMean()
        """Milliseconds that a request spends on its worker."""
        self.answer = FadingMean()
        """Tokens of an answer; known only where outputs are counted."""
        self.newcomers = Newcomers(weights.welcome)
        self.places: list[PlaceLoad] = []
        """By worker id and rank, so that nothing depends on the order of their coming."""
        self._rows: list[LoadRow] = []
        self._changed: set[PlaceLoad] = set()
        """Places whose rows are of before."""
        self._workers: dict[int, tuple[PlaceLoad, ...]] = {}
        self._sent: dict[Hashable, Sent] = {}
        self._given = 0

    def __len__(self) -> int:
        """Requests that are somewhere."""
        return len(self._sent)

    # --- workers -------------------------------------------------------------------------------------------------------------

    @property
    def workers(self) -> KeysView[int]:
        """Ids."""
        return self._workers.keys()

    def of(self, worker_id: int) -> tuple[PlaceLoad, ...]:
        """The worker's places by rank; none for an unknown worker."""
        return self._workers.get(worker_id, ())

    def add(self, worker: WorkerView) -> tuple[PlaceLoad, ...]:
        """Returns its places: one a data-parallel rank."""
        places = tuple(PlaceLoad(worker, rank) for rank in range(max(1, worker.card.data_parallel_size)))
        self._workers[worker.id] = places
        if self._given:
            self.newcomers.joined(places, self._seconds() * 1000)
        self._line_up()
        return places

    def remove(self, worker_id: int) -> None:
        """What it was sent stays in the books until it ends, and weighs on nobody."""
        places = self._workers.pop(worker_id, None)
        if places is not None:
            self.newcomers.left(places)
            self._line_up()

    def _line_up(self) -> None:
        self.places = [place for worker_id in sorted(self._workers) for place in self._workers[worker_id]]
        for at, place in enumerate(self.places):
            place.place = at
        self._rows = [self._row(place) for place in self.places]
        self._changed.clear()

    @property
    def rows(self) -> list[LoadRow]:
        """One a place, in the same order; made anew where something changed, now that somebody looks."""
        if self._changed:
            for place in self._changed:
                at = place.place
                if at < len(self.places) and self.places[at] is place:  # it has not left meanwhile
                    self._rows[at] = self._row(place)
            self._changed.clear()
        return self._rows

    @property
    def running_ms(self) -> float:
        """What a token that runs on a place adds to the cost there."""
        running = self._running
        if running is None:
            token_ms = self.speed.token_ms
            running = self._weights.presence * token_ms + self._weights.decode * self.decode.sober(_GUESS * token_ms)
            self._running = running
        return running

    # --- requests ------------------------------------------------------------------------------------------------------------

    def begin(
        self,
        key: Hashable,
        place: PlaceLoad,
        tokens: int,
        new_tokens: int,
        own_ms: float,
        expected: int = 0,
        pieces: Pieces = NO_PIECES,
    ) -> None:
        """A prompt was sent there, of which ``new_tokens`` are to be computed within ``own_ms`` once it is its turn.

        ``expected``: tokens of the answer that count as held from here on. ``pieces``: what it may share with others there.
        """
        if key in self._sent:
            self.end(key)
        now = self.clock.now
        if not place.prefilling:
            own_ms += self.speed.overhead_ms
        self._sent[key] = Sent(place, tokens, new_tokens, own_ms, expected, now, pieces)
        place.begin(tokens + expected, new_tokens, own_ms, now, pieces)
        self._given += 1
        self.newcomers.sent(place, now)
        place.given = self._given
        self._changed.add(place)

    def first_token(self, key: Hashable) -> None:
        """Its prompt is computed."""
        sent = self._sent.get(key)
        if sent is None or sent.first_token is not None:
            return
        self.tick()
        sent.first_token = self.clock.now
        if self.speed.trust():
            self._running = None
        self._learn(sent.place.measured(self.clock.now))
        sent.place.first_token(sent.new_tokens, sent.own_ms, sent.at, self.clock, self.speed.token_ms)
        sent.area, sent.computed_ms = sent.place.area(self.clock.now), sent.place.computed_ms
        self._changed.add(sent.place)

    def generated(self, key: Hashable, count: int) -> None:
        """So many more tokens of its answer; what goes beyond the expected length counts as it comes, in steps."""
        sent = self._sent.get(key)
        if sent is None:
            return
        sent.generated += count
        if sent.generated > sent.expected:
            step = max(_OUTPUT_STEP, sent.generated - sent.expected)
            sent.expected += step
            sent.place.grow(step, self.clock.now)
            self._changed.add(sent.place)

    def end(self, key: Hashable, *, answered: bool = False) -> None:
        """It is gone, in whatever way; ``answered``: to its end, as seen here."""
        sent = self._sent.pop(key, None)
        if sent is None:
            return
        self.tick()
        self._learn(sent.place.measured(self.clock.now))
        if sent.first_token is not None:
            self.stay.observe(self.clock.now - sent.at)
            if answered:
                self._decoded(sent, sent.first_token)
            if sent.generated:
                self.answer.observe(sent.generated)
        held = sent.tokens + sent.expected
        own_ms = sent.new_tokens * self.speed.token_ms
        sent.place.end(held, sent.new_tokens, own_ms, sent.first_token, self.clock, sent.pieces)
        self._changed.add(sent.place)

    def doubt(self, chosen: PlaceLoad) -> bool:
        """Whether this place, and all others, are so late that prompts must take longer than is believed; if so, that is believed
        from here on, until a first token comes. O(1) where this one is in time, else O(places).

        Else they would be told apart by when each of them began, and the latest to begin would get all that comes.
        """
        now, step_ms = self.clock.now, self.speed.overhead_ms
        least = _FURTHER if self.speed.doubted else _DOUBT
        if chosen.slowness(now, step_ms) < least:
            return False
        times = min(place.slowness(now, step_ms) for place in self.places)
        if times < least:
            return False
        self.speed.slower(times)
        self._running = None
        for place in self.places:
            place.slower(times, now)
        self._changed.update(self.places)
        return True

    def tick(self) -> None:
        """Look at the clock; all times within a call of the router are this one."""
        factors = self.clock.tick(self._seconds() * 1000)
        if factors is not None:
            for place in self.places:
                place.fade(factors)
            self._changed.update(self.places)

    def _decoded(self, sent: Sent, first_token: float) -> None:
        """Its answer is complete."""
        place, took = sent.place, self.clock.now - first_token
        if took > 0:
            running = (place.area(self.clock.now) - sent.area) / took
            self.decode.observe(running, took - (place.computed_ms - sent.computed_ms))
            self._running = None

    @property
    def slowed_ms(self) -> float:
        """What a token that runs beside an answer is believed to add to the time of decoding it."""
        return self.decode.slope(_GUESS * self.speed.token_ms)

    def _learn(self, seen: Observation | None) -> None:
        if seen is not None:
            self.speed.observe(seen.tokens, seen.ms)
            self._running = None

    def _row(self, place: PlaceLoad) -> LoadRow:
        return place.row(self._weights, self._config.overlap_score_weight, self.stay.value)
