"""The prefill-policy contract: whether a prompt is computed by a prefill worker or where it is decoded.

Alpha: it may change until disaggregated serving ships.
"""

from __future__ import annotations

from typing import Protocol

import msgspec

from dynamo_core.contracts.router import WorkerView

__all__ = ["PrefillPolicy", "PrefillPolicyContext", "PrefillRequest"]


class PrefillRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One request for which the router has chosen the worker that decodes."""

    id: str
    prompt_tokens: int
    cached_tokens: int
    """Prompt tokens that the router believes cached on the decode worker."""
    decode_worker: WorkerView
    prefill_workers: tuple[WorkerView, ...] = ()
    """Those that are ready."""


class PrefillPolicyContext(msgspec.Struct, frozen=True, kw_only=True):
    """What the frontend hands to a policy's factory. One policy serves one model."""

    model: str
    block_size: int
    """Tokens a KV block; 0 when the engine has none."""


class PrefillPolicy(Protocol):
    """Made by a :class:`~dynamo_core.specs.PrefillPolicySpec` factory."""

    def remote(self, request: PrefillRequest) -> bool:
        """True: a prefill worker computes the prompt. Not asked when there is none.

        Called once a request on the event loop; must not block. An exception fails the request with 500.
        """
        ...
