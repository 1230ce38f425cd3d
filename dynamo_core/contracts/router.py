"""The router contract: which worker gets which request.

The smallest router::

    class First:
        def __init__(self, config, context): pass
        def select(self, requests, workers):
            return [Route(min(workers)) if workers else Hold() for _ in requests]

``select`` is synchronous, must not block, and should stay under 50 µs a request with 64 workers. All methods are called on the
frontend's event loop. The optional methods are looked up once, at start-up.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol, TypeAlias

import msgspec

from dynamo_core.contracts.engine import EngineLoad
from dynamo_core.contracts.kv_event import KvBatch
from dynamo_core.contracts.model_card import ModelCard
from dynamo_core.errors import DynamoError

__all__ = ["Decision", "Hold", "Outcome", "Reject", "Route", "RouteRequest", "Router", "RouterContext", "WorkerView"]


class RouteRequest(msgspec.Struct, kw_only=True, eq=False):
    """One request that wants a worker. Routers may keep it as a key (identity) between ``select`` and ``finished``."""

    id: str
    token_ids: Sequence[int]
    max_tokens: int = 0
    arrival: float = 0.0
    """Seconds on the router context's clock."""
    excluded: frozenset[int] = frozenset()
    """Workers that failed this request already; never choose them."""
    pinned: int | None = None
    """The client named this worker; a router that ignores it must have a reason."""
    priority: int = 0
    lora: str | None = None
    cache_salt: str | None = None
    session: str | None = None
    headers: Mapping[str, str] = {}
    """The client's HTTP headers, names in lower case."""


class WorkerView(msgspec.Struct, eq=False):
    """One worker as the frontend sees it. The frontend updates ``load`` and the counts in place; routers only read."""

    id: int
    card: ModelCard
    load: EngineLoad | None = None
    """The worker's latest own reading, or ``None`` before the first."""
    inflight: int = 0
    """Requests that this frontend has on the worker now."""
    inflight_tokens: int = 0
    """Their prompt tokens."""


class Route(msgspec.Struct, frozen=True):
    """Send it there. From this moment the router counts the request as running on the worker, until ``finished``."""

    worker_id: int
    overlap_blocks: int = 0
    """Blocks of the prompt that the router believes cached there."""
    explain: Any = None
    """Anything that says why (msgpack-able); shown in logs and debug headers on demand."""


class Hold(msgspec.Struct, frozen=True):
    """Not yet. Offered again when a worker, a load or a running request changes, and after ``retry_after`` seconds."""

    retry_after: float | None = None
    reason: str = ""


class Reject(msgspec.Struct, frozen=True):
    """Never. The request fails with this error; the others of the turn are not touched."""

    error: DynamoError


Decision: TypeAlias = Route | Hold | Reject
Outcome: TypeAlias = Literal["completed", "cancelled", "failed", "migrated"]


class RouterContext(msgspec.Struct, frozen=True, kw_only=True):
    """What the frontend hands to a router's factory. One router serves one model."""

    model: str
    block_size: int
    """Tokens a KV block, of the first worker's card; 0 when the engine has none."""
    clock: Callable[[], float]
    """Seconds, monotonic; virtual in the simulator. A router uses no other clock."""
    seed: int = 0
    """For routers that draw lots."""


class Router(Protocol):
    """Made by a :class:`~dynamo_core.specs.RouterSpec` factory."""

    def select(self, requests: Sequence[RouteRequest], workers: Mapping[int, WorkerView]) -> Sequence[Decision]:
        """Place the requests that arrived in one turn of the loop (held ones among them): one decision each, in order.

        ``workers`` holds those that are ready. An exception fails these requests with 500 and is counted against the plugin.
        """
        ...

    # Optional:
    #   def first_token(self, request: RouteRequest, worker_id: int) -> None     prefill is over
    #   def output_tokens(self, request, worker_id, count: int) -> None          only if defined: after each chunk, hot
    #   def finished(self, request, worker_id, outcome: Outcome) -> None         exactly once for each Route
    #   def kv_events(self, batch: KvBatch) -> None                              in order per worker
    #   def kv_lost(self, worker_id: int, dp_rank: int) -> None                  batches were lost: what is known of it is void
    #   def worker_added(self, worker: WorkerView) -> None / worker_removed(self, worker_id: int) -> None
    #   def state(self) -> dict                                                  for `dynamo status` and debugging


_ = KvBatch  # named by the optional methods above
