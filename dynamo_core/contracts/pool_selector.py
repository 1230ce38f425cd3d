"""The pool-selector contract: which pool of workers a request goes to, before a router picks the worker.

Alpha: it may change until a global router ships.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import msgspec

from dynamo_core.contracts.gate import Principal
from dynamo_core.contracts.model_card import Role

__all__ = ["PoolRequest", "PoolSelector", "PoolSelectorContext", "PoolView"]


class PoolRequest(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    prompt_tokens: int
    max_tokens: int
    priority: int = 0
    ttft_target_ms: float | None = None
    """What the client asks for; ``None``: the default of the deployment. So is ``itl_target_ms``."""
    itl_target_ms: float | None = None
    headers: Mapping[str, str] = {}
    """Names in lower case."""
    principal: Principal | None = None


class PoolView(msgspec.Struct, frozen=True, kw_only=True):
    namespace: str
    role: Role = Role.AGGREGATED
    ready: int = 0
    """Workers that can take a request."""
    inflight: int = 0
    """Requests that this router has in the pool now."""


class PoolSelectorContext(msgspec.Struct, frozen=True, kw_only=True):
    """What the global router hands to a selector's factory. One selector serves one model."""

    model: str
    clock: Callable[[], float]
    """Seconds, monotonic; virtual in the simulator."""


class PoolSelector(Protocol):
    """Made by a :class:`~dynamo_core.specs.PoolSelectorSpec` factory."""

    def select(self, request: PoolRequest, pools: Mapping[str, PoolView]) -> Sequence[str]:
        """Namespaces out of ``pools``, best first; the next is tried when one fails before the first token.

        None at all is answered 503, an exception 500. Called once a request on the event loop; must not block.
        """
        ...
