"""How fast prompts are computed, how long requests stay and answers are: learned from what becomes of requests."""

from __future__ import annotations

__all__ = ["FadingMean", "PrefillSpeed"]

_OVERHEAD_MS, _TOKEN_MS = 16.0, 0.02
"""Until something was seen: one large GPU with a model of some billions of parameters."""
_MEMORY = 0.98
"""Weight of an observation after the next one: the last fifty count."""
_TRUST = 8
"""Observations after which one that is off by more than five times is cut to that."""


class PrefillSpeed:
    """Fits ``ms = overhead + token_ms × tokens`` by least squares with fading memory.

    As long as the prompts seen are all of about one length, the line's two numbers cannot be told apart, and the first guess is
    scaled as a whole.
    """

    __slots__ = ("_m", "_n", "_nm", "_nn", "_seen", "overhead_ms", "token_ms")

    def __init__(self) -> None:
        self.overhead_ms = _OVERHEAD_MS
        """Of a step that computes a prompt, whatever its length."""
        self.token_ms = _TOKEN_MS
        self._seen = 0.0
        self._n = self._nn = self._m = self._nm = 0.0

    def predict(self, tokens: int) -> float:
        """Milliseconds on an idle worker."""
        return self.overhead_ms + self.token_ms * tokens

    def observe(self, tokens: int, ms: float) -> None:
        """A worker computed so many prompt tokens in this time, and nothing else of ours."""
        if tokens < 1 or ms <= 0:
            return
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


class FadingMean:
    """Mean of what was observed, the last fifty or so; 0 until something was."""

    __slots__ = ("_seen", "value")

    def __init__(self) -> None:
        self.value = 0.0
        self._seen = 0.0

    def observe(self, value: float) -> None:
        self._seen = self._seen * _MEMORY + 1
        self.value += (value - self.value) / self._seen
