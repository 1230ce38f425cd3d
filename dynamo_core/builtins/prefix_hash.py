"""Router ``prefix-hash``: consistent hashing of the prompt's beginning, with bounded load.

Workers stand on a ring, each at many points; a prompt goes to the worker at the first point after the hash of its first tokens.
So equal beginnings meet on one worker, on every frontend, with nothing to learn or to store, and when a worker comes or goes only
its share of the prompts moves. A worker that runs more than ``load_factor`` times the mean is passed over for the next one.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from math import ceil
from typing import Annotated

import msgspec

from dynamo_core.contracts import Decision, Hold, Route, RouterContext, RouteRequest, WorkerView
from dynamo_core.hookspecs import hookimpl
from dynamo_core.kv import block_hash, hash_seed
from dynamo_core.specs import RouterSpec

__all__ = ["PrefixHash", "PrefixHashConfig", "dynamo_config", "dynamo_routers"]

_POINT_SEED = 7


class PrefixHashConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    prefix_tokens: Annotated[int, msgspec.Meta(ge=1)] = 256
    """Tokens from the start of the prompt that are hashed; what all prompts share should be shorter."""
    load_factor: Annotated[float, msgspec.Meta(ge=1)] = 1.25
    """How many times the mean of running requests a worker may have."""
    virtual_nodes: Annotated[int, msgspec.Meta(ge=1, le=4096)] = 128
    """Points of each worker on the ring: the more, the more even."""


class PrefixHash:
    """Repeatable; keeps no state but the ring. O(workers) a request, O(workers × points) when workers change."""

    def __init__(self, config: PrefixHashConfig | None, _context: RouterContext) -> None:
        self._config = config or PrefixHashConfig()
        self._members: frozenset[int] = frozenset()
        self._points: list[int] = []
        self._owners: list[int] = []

    def select(self, requests: Sequence[RouteRequest], workers: Mapping[int, WorkerView]) -> Sequence[Decision]:
        if workers.keys() != self._members:
            self._build(workers)
        load = {worker.id: worker.running for worker in workers.values()}
        return [self._place(request, load) for request in requests]

    def _place(self, request: RouteRequest, load: dict[int, int]) -> Decision:
        """``load`` is counted on, so that the requests of one turn see each other."""
        excluded, pinned = request.excluded, request.pinned
        if pinned is not None and pinned in load and pinned not in excluded:
            chosen: int | None = pinned
        else:
            fit = load.keys() - excluded if excluded else load.keys()
            chosen = self._walk(request, load, len(fit)) if fit else None
        if chosen is None:
            return Hold(reason="no worker is left for this request")
        load[chosen] += 1
        return Route(chosen)

    def _walk(self, request: RouteRequest, load: Mapping[int, int], fit: int) -> int | None:
        """Round the ring from the prompt's place; someone always has no more than the mean."""
        running = sum(load.values()) if not request.excluded else sum(n for w, n in load.items() if w not in request.excluded)
        bound = ceil(self._config.load_factor * (running + 1) / fit)
        start = bisect_right(self._points, self._key(request))
        for i in range(start, start + len(self._owners)):
            worker = self._owners[i % len(self._owners)]
            if load[worker] < bound and worker not in request.excluded:
                return worker
        return None

    def _key(self, request: RouteRequest) -> int:
        return block_hash(islice(request.token_ids, self._config.prefix_tokens), hash_seed(request.lora, request.cache_salt))

    def _build(self, workers: Iterable[int]) -> None:
        self._members = frozenset(workers)
        nodes = range(self._config.virtual_nodes)
        ring = sorted((_point(worker, node), worker) for worker in self._members for node in nodes)
        self._points = [point for point, _ in ring]
        self._owners = [worker for _, worker in ring]


def _point(worker: int, node: int) -> int:
    """Equal on every frontend. Ids have up to 64 bits."""
    return block_hash((worker & 0xFFFF_FFFF, worker >> 32 & 0xFFFF_FFFF, node), _POINT_SEED)


@hookimpl
def dynamo_config() -> type[msgspec.Struct]:
    return PrefixHashConfig


@hookimpl
def dynamo_routers() -> Iterable[RouterSpec]:
    yield RouterSpec(
        name="prefix-hash",
        factory=PrefixHash,
        aliases=("consistent-hashing",),
        description="Consistent hashing of the prompt's first tokens, with bounded load.",
    )
