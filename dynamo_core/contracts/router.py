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
from typing import Annotated, Any, Literal, Protocol, TypeAlias

import msgspec

from dynamo_core.contracts.engine import EngineLoad
from dynamo_core.contracts.kv_event import KvBatch
from dynamo_core.contracts.model_card import ModelCard
from dynamo_core.errors import DynamoError

__all__ = [
    "NO_HINTS",
    "BusyThresholds",
    "Decision",
    "ForeignRequest",
    "Hold",
    "Outcome",
    "OverlapScore",
    "PotentialLoad",
    "Reject",
    "Route",
    "RouteRequest",
    "Router",
    "RouterContext",
    "RoutingHints",
    "WorkerView",
]


class RoutingHints(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a client says of its request to whoever routes it. Nearly all requests have :data:`NO_HINTS`."""

    strict_priority: int = 0
    """Where requests wait, a higher tier goes before all lower ones."""
    expected_output: int = 0
    """Tokens that the answer will have; 0: nobody knows."""
    service_class: str = ""
    """Of those that share workers fairly; the authenticated principal's, else what the client says."""
    tenant: str = ""
    """The authenticated principal's."""
    required_taints: frozenset[str] = frozenset()
    """Only workers with all of these."""
    preferred_taints: Mapping[str, float] = {}
    """Taint → weight: workers with it are dearer (below 0) or cheaper (above)."""
    dp_rank: int | None = None
    """The client named this data-parallel rank."""
    settings: Mapping[str, Any] = {}
    """Of the router's configuration, for this request alone: from a program that routes, never from a client. A router rejects a
    request with settings that it knows and cannot change for one; a router that has none ignores them."""


NO_HINTS = RoutingHints()


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
    """Lower goes first, as with vLLM."""
    lora: str | None = None
    cache_salt: str | None = None
    session: str | None = None
    headers: Mapping[str, str] = {}
    """The client's HTTP headers, names in lower case."""
    hints: RoutingHints = NO_HINTS


class ForeignRequest(RouteRequest, kw_only=True, eq=False):
    """A request that another frontend sent to a worker. Its ``token_ids`` are not known here and empty."""

    prompt_tokens: int
    overlap_blocks: int = 0
    """As the other frontend's router believed."""
    dp_rank: int | None = None
    note: Any = None
    """What the other frontend's :attr:`Route.note` gave."""


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
    inflight_elsewhere: int = 0
    """Requests that other frontends say they have on the worker."""
    inflight_tokens_elsewhere: int = 0

    @property
    def running(self) -> int:
        """Requests of all frontends on the worker."""
        return self.inflight + self.inflight_elsewhere


class Route(msgspec.Struct, frozen=True):
    """Send it there. From this moment the router counts the request as running on the worker, until ``finished``."""

    worker_id: int
    overlap_blocks: int = 0
    """Blocks of the prompt that the router believes cached there."""
    explain: Any = None
    """Anything that says why (msgpack-able); shown in logs and debug headers on demand."""
    dp_rank: int | None = None
    """Of a worker with several data-parallel ranks; ``None`` leaves it to the engine."""
    note: Callable[[], Any] | None = None
    """Makes what the routers of other frontends are told with the request (msgpack-able, some kilobytes at most); called only
    when there are any."""


class OverlapScore(msgspec.Struct, frozen=True, kw_only=True):
    """What one data-parallel rank of a worker has of a prompt, in blocks from its beginning."""

    dp_rank: int = 0
    device: int = 0
    host: int = 0
    """Further ones in the host's memory, as are those on disk."""
    disk: int = 0


class PotentialLoad(msgspec.Struct, frozen=True, kw_only=True):
    """What one data-parallel rank of a worker would carry if a prompt were sent there."""

    dp_rank: int = 0
    prefill_tokens: int = 0
    """To compute, of those that were sent and of this one; what is cached there does not count."""
    decode_blocks: int = 0
    """KV blocks that running requests hold, and this one's."""
    requests: int = 0
    """Now running."""


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
    wake: Callable[[], None] = lambda: None
    """Has the requests that the router holds offered again; for routers that wait for something of their own."""
    runtime: Any = None
    """The process's :class:`~dynamo_core.runtime.DistributedRuntime`, for routers that ask others; ``None`` in the simulator."""


class BusyThresholds(msgspec.Struct, frozen=True, kw_only=True):
    """From where on a worker is busy: one of these is reached on each of its ranks. ``None``: never for this reason."""

    active_decode_blocks_threshold: Annotated[float, msgspec.Meta(ge=0)] | None = None
    """Share of its KV blocks that running requests have."""
    active_prefill_tokens_threshold: Annotated[int, msgspec.Meta(ge=0)] | None = None
    """Prompt tokens that are still to be computed."""
    active_prefill_tokens_threshold_frac: Annotated[float, msgspec.Meta(ge=0)] | None = None
    """The same as a share of ``max_num_batched_tokens``."""


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
    #   def dropped(self, request: RouteRequest) -> None                         on no worker, and not wanted any more
    #   def query(self, request, workers) -> Decision                            what select would answer; books nothing; or async
    #   def overlap_scores(self, request, workers) -> dict[int, list[OverlapScore]]   by worker, one a rank
    #   def potential_loads(self, request, workers) -> dict[int, list[PotentialLoad]] by worker, one a rank
    #   def known_blocks(self) -> Sequence[KvBatch]                              stored events that would make its index anew
    #   def close(self) -> None                                                  sync or async; the frontend is done with it
    #   def routed_elsewhere(self, request: ForeignRequest, worker_id: int) -> None   another frontend's; first_token and finished
    #                                                                            then come for it as for one's own
    #   def kv_events(self, batch: KvBatch) -> None                              in order per worker
    #   def kv_lost(self, worker_id: int, dp_rank: int) -> None                  batches were lost: what is known of it is void
    #   def worker_added(self, worker: WorkerView) -> None / worker_removed(self, worker_id: int) -> None
    #   def busy_thresholds(self) -> BusyThresholds                              in force now
    #   def set_busy_thresholds(self, thresholds: BusyThresholds) -> None        from here on
    #   def state(self) -> dict                                                  for `dynamo status` and debugging


_ = KvBatch  # named by the optional methods above
