"""What the parts of a cost weigh."""

from __future__ import annotations

import msgspec

from dynamo_kv_router.config import KvRouterConfig

__all__ = ["Weights"]


class Weights(msgspec.Struct, frozen=True, kw_only=True):
    """Chosen in simulation on an hour of real conversations; good from a lightly used to an overloaded set of workers."""

    affinity: float = 4.5
    """What a cached prompt saves where room in caches is scarce, in times that it would take; 1 where it is not."""
    scarce: float = 0.005
    """Share of evicted blocks, in what could have been found, from which on room is scarce."""
    crowd: float = 0.015
    youth: float = 0.09
    tau_ms: float = 220.0
    presence: float = 0.08
    """What a running token costs whatever it slows down, as a share of computing one: who has much will be asked for more."""
    decode: float = 0.047
    """Share of the time by which a running token slows a request's decoding that counts."""
    spare: float = 0.1
    """Share of a cache that is kept for what streams generate."""
    per_request: float = 0.0
    """Tokens that a running request weighs besides its own."""
    welcome: float = 0.2
    """What a millisecond without requests is worth to a worker that joined others at work, in computing what they have cached."""
    prefills: bool = True
    """Prompts that are not computed yet count."""
    holdings: bool = True
    """What running requests hold counts."""

    def configured(self, config: KvRouterConfig, block_size: int) -> Weights:
        return msgspec.structs.replace(
            self,
            per_request=config.router_decode_active_request_weight * block_size,
            prefills=config.router_track_prefill_tokens,
            holdings=config.router_track_active_blocks,
        )
