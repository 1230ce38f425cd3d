"""What Dynamo 1.6.1's own offline replay prints for Mooncake's conversation trace: 8 workers × 2,048 blocks of 512 tokens.

By load. Its KV router draws ties at random; hit rate, mean and p99 TTFT, p99 TPOT and p99 E2E are medians of five runs, the other
figures those of one run.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["KV_MEDIANS", "ROUND_ROBIN", "Figures"]


class Figures(NamedTuple):
    """Milliseconds but for the hit rate."""

    hit: float
    ttft: float
    ttft50: float
    ttft90: float
    ttft99: float
    tpot: float
    tpot99: float
    e2e: float
    e2e99: float


ROUND_ROBIN = {
    1: Figures(0.082, 321, 184, 702, 2048, 8.10, 22.8, 2913, 10889),
    2: Figures(0.082, 347, 207, 765, 2147, 10.79, 32.4, 3860, 15200),
    3: Figures(0.082, 392, 229, 882, 2404, 15.94, 53.4, 5629, 22146),
    4: Figures(0.081, 475, 273, 1174, 2780, 26.82, 99.7, 9302, 36644),
}
KV_MEDIANS = {
    1: Figures(0.204, 277, 169, 551, 1690, 8.27, 37.1, 2758, 8881),
    2: Figures(0.181, 330, 207, 629, 1755, 11.12, 63.3, 3543, 11215),
    3: Figures(0.169, 371, 266, 712, 1846, 15.43, 90.3, 4914, 15373),
    4: Figures(0.166, 408, 322, 795, 1939, 23.77, 124.3, 7547, 23745),
}
