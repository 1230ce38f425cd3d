"""How long a step of a simulated engine takes.

Dynamo's mocker has the same two polynomials, fitted to one GPU and one model::

    prefill_ms = 4.209989e-7 n² + 1.518344e-2 n + 16.50142        n = prompt tokens computed in the step
    decode_ms  = max(1, −25.74 p² + 54.01 p + 5.74)               p = KV tokens of the decoding sequences ÷ capacity

A step takes both together; both are divided by the speed-up.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

__all__ = ["Chunk", "TimingModel", "prefill_tokens"]


class Chunk(msgspec.Struct, frozen=True):
    """The part of one prompt that one step computes: positions ``start`` to ``end``."""

    start: int
    end: int


class TimingModel(msgspec.Struct, frozen=True, kw_only=True):
    prefill: tuple[float, float, float] = (4.209989e-7, 1.518344e-2, 16.50142)
    """Milliseconds: coefficients of n², n and 1."""
    decode: tuple[float, float, float] = (-25.74, 54.01, 5.74)
    """Milliseconds: coefficients of p², p and 1; never under 1 ms."""
    speedup_ratio: float = 1.0
    """0: no time passes."""
    decode_speedup_ratio: float = 1.0
    """On top of it, for decoding alone; 0: decoding takes no time."""

    def prefill_ms(self, tokens: int) -> float:
        """0 without tokens, else the cost of computing them in one step."""
        if not tokens:
            return 0.0
        square, linear, constant = self.prefill
        return self._scaled((square * tokens + linear) * tokens + constant)

    def decode_ms(self, active_tokens: int, total_tokens: int) -> float:
        """Cost of one token for every decoding sequence; ``active_tokens`` is the sum of their lengths."""
        if not active_tokens:
            return 0.0
        square, linear, constant = self.decode
        p = active_tokens / total_tokens
        ms = self._scaled(max(1.0, (square * p + linear) * p + constant))
        return ms / self.decode_speedup_ratio if self.decode_speedup_ratio else 0.0

    def step_ms(self, chunks: Sequence[Chunk], active_tokens: int, total_tokens: int) -> float:
        return self.prefill_ms(prefill_tokens(chunks)) + self.decode_ms(active_tokens, total_tokens)

    def _scaled(self, ms: float) -> float:
        return ms / self.speedup_ratio if self.speedup_ratio else 0.0


def prefill_tokens(chunks: Sequence[Chunk]) -> int:
    """The mocker's n: the number of chunks times the difference of their mean end and mean start, each rounded down."""
    count = len(chunks)
    if not count:
        return 0
    return count * (sum(c.end for c in chunks) // count - sum(c.start for c in chunks) // count)
