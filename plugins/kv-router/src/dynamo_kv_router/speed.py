"""How fast prompts are computed, how long requests stay and answers are: learned from what becomes of requests."""

from __future__ import annotations

__all__ = ["DecodeSpeed", "FadingMean", "PrefillSpeed"]

_OVERHEAD_MS, _TOKEN_MS = 16.0, 0.02
"""Until something was seen: one large GPU with a model of some billions of parameters."""
_MEMORY = 0.98
"""Weight of an observation after the next one: the last fifty count."""
_TRUST = 8
"""Observations after which one that is off by more than five times is cut to that."""
_LONG_MEMORY = 0.998
"""The last five hundred count: answers differ more in length than by what runs beside them."""
_GUESS_ANSWERS = 100.0
_LEAST, _MOST = 0.5, 4.0
"""In times of the guess. Piling up where decoding seems to suffer little loses more than it can win."""


class PrefillSpeed:
    """Fits ``ms = overhead + token_ms × tokens`` by least squares with fading memory.

    As long as the prompts seen are all of about one length, the line's two numbers cannot be told apart, and the first guess is
    scaled as a whole.
    """

    __slots__ = ("_m", "_n", "_nm", "_nn", "_seen", "_slower", "overhead_ms", "token_ms")

    def __init__(self) -> None:
        self.overhead_ms = _OVERHEAD_MS
        """Of a step that computes a prompt, whatever its length."""
        self.token_ms = _TOKEN_MS
        self._slower = 1.0
        self._seen = 0.0
        self._n = self._nn = self._m = self._nm = 0.0

    def slower(self, times: float) -> None:
        """Prompts take so many times as long as they should, and none is done yet; holds until :meth:`trust`."""
        self._slower *= times
        self.overhead_ms *= times
        self.token_ms *= times

    def trust(self) -> bool:
        """A prompt is done: what was learned holds again. Whether something else was believed."""
        doubted = self.doubted
        if doubted:
            self.overhead_ms /= self._slower
            self.token_ms /= self._slower
            self._slower = 1.0
        return doubted

    @property
    def doubted(self) -> bool:
        """Something slower is believed than what was learned."""
        return self._slower != 1.0

    def predict(self, tokens: int) -> float:
        """Milliseconds on an idle worker."""
        return self.overhead_ms + self.token_ms * tokens

    def observe(self, tokens: int, ms: float) -> None:
        """A worker computed so many prompt tokens in this time, and nothing else of ours."""
        if tokens < 1 or ms <= 0:
            return
        self.trust()
        if self._seen >= _TRUST:
            expected = self.predict(tokens)
            ms = min(max(ms, expected / 5), expected * 5)
        self._seen = self._seen * _MEMORY + 1
        self._n = self._n * _MEMORY + tokens
        self._nn = self._nn * _MEMORY + tokens * tokens
        self._m = self._m * _MEMORY + ms
        self._nm = self._nm * _MEMORY + tokens * ms
        self._fit()

    def _fit(self) -> None:
        mean_n, mean_m = self._n / self._seen, self._m / self._seen
        variance = self._nn / self._seen - mean_n * mean_n
        if self._seen >= 3 and variance > (mean_n / 4) ** 2:
            token_ms = (self._nm / self._seen - mean_n * mean_m) / variance
            overhead_ms = mean_m - token_ms * mean_n
            if token_ms > 0 and overhead_ms >= 0:
                self.token_ms, self.overhead_ms = token_ms, overhead_ms
                return
            if token_ms > 0:  # longer prompts cost more than their share: a line through the origin
                self.token_ms, self.overhead_ms = self._nm / self._nn, 0.0
                return
        scale = mean_m / (_OVERHEAD_MS + _TOKEN_MS * mean_n)
        self.token_ms, self.overhead_ms = _TOKEN_MS * scale, _OVERHEAD_MS * scale


class DecodeSpeed:
    """What a token that runs on a worker costs a request there: milliseconds over its whole answer.

    Fits ``ms of decoding = base + slope × tokens running meanwhile`` by least squares with fading memory. A router is not told
    how long answers were; but as their length does not depend on what else runs, the slope is that of a step
    times the mean length.
    """

    __slots__ = ("_ms", "_seen", "_spread", "_tokens", "_with")

    def __init__(self) -> None:
        self._seen = 0.0
        self._tokens = self._ms = 0.0
        """Means."""
        self._spread = self._with = 0.0
        """Sums of squared differences of tokens to their mean, and of these differences times those of the milliseconds."""

    def observe(self, tokens: float, ms: float) -> None:
        """An answer was decoded within ``ms``, other people's prompts aside, while on average so many tokens ran there."""
        if ms <= 0 or tokens <= 0:
            return
        if self._seen >= _TRUST:
            ms = min(ms, 5 * self._ms)
        self._seen = self._seen * _LONG_MEMORY + 1
        off, before = tokens - self._tokens, ms - self._ms
        self._tokens += off / self._seen
        self._ms += before / self._seen
        self._spread = self._spread * _LONG_MEMORY + off * (tokens - self._tokens)
        self._with = self._with * _LONG_MEMORY + off * (ms - self._ms)

    def slope(self, guess: float) -> float:
        """The guess counts as a hundred answers whose tokens spread by a quarter, so that it stands where nothing can be told
        apart. Below 0 where an engine decodes faster the fuller it is."""
        doubt = _GUESS_ANSWERS * (self._tokens / 4) ** 2
        return (self._with + doubt * guess) / (self._spread + doubt) if doubt else guess

    def sober(self, guess: float) -> float:
        """The slope, but never far from the guess, so that no observation can make a router pile up or shy away."""
        return min(max(self.slope(guess), guess * _LEAST), guess * _MOST)


class FadingMean:
    """Mean of what was observed, the last fifty or so; 0 until something was."""

    __slots__ = ("_seen", "value")

    def __init__(self) -> None:
        self.value = 0.0
        self._seen = 0.0

    def observe(self, value: float) -> None:
        self._seen = self._seen * _MEMORY + 1
        self.value += (value - self.value) / self._seen
