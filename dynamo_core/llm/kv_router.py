"""KV routing for programs of one's own: the router plugin, the workers of an endpoint and what they tell, put together."""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, NamedTuple

import msgspec

from dynamo_core.contracts import NO_HINTS, Context, Outcome, OverlapScore, Route, RouteRequest, RoutingHints, WorkerView
from dynamo_core.errors import ConfigError, DynamoError, InvalidRequest, NoInstances
from dynamo_core.llm.model import RoutingConstraints
from dynamo_core.llm.payload import request_of
from dynamo_core.plugins import activate
from dynamo_core.runtime.component import Endpoint
from dynamo_core.serving.endpoint_router import EndpointRouter
from dynamo_core.serving.sequence import Sequence
from dynamo_core.serving.wire import decode_chunk

__all__ = ["BestWorker", "KvRouter", "KvRouterConfig"]

_PLUGIN = "kv-router"


class KvRouterConfig(dict[str, Any]):
    """Keyword arguments for the plugin's configuration, which checks them; see ``docs/plugins.md``."""


class BestWorker(NamedTuple):
    worker_id: int
    dp_rank: int
    overlap_blocks: int


class KvRouter:
    """Chooses among the instances of ``endpoint``, and calls them. Resolves plugin ``kv-router``; raises PluginError without it.

    ``block_size`` ``None``: of the first worker's card. The first awaited call connects; what it holds ends with the endpoint's
    runtime or by :meth:`close`. ``workers`` replaces plugin and settings by a router that was made elsewhere.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        block_size: int | None = None,
        kv_router_config: Mapping[str, Any] | None = None,
        *,
        migration_limit: int = 3,
        workers: EndpointRouter | None = None,
    ) -> None:
        if workers is None:
            compiled = activate((_PLUGIN,), tables={_PLUGIN: dict(kv_router_config or {})}, source="KvRouter(kv_router_config)")
            workers = EndpointRouter(
                endpoint,
                compiled.router(_PLUGIN),
                compiled.faults,
                block_size=block_size,
                migration_limit=migration_limit,
            )
        self._endpoint = endpoint
        self._workers = workers
        self._booked: dict[str, tuple[RouteRequest, WorkerView]] = {}

    # --- questions -----------------------------------------------------------------------------------------------------------

    async def best_worker(
        self,
        token_ids: list[int],
        router_config_override: Mapping[str, Any] | None = None,
        request_id: str | None = None,
        update_indexer: bool = False,
        block_mm_infos: Any = None,
        lora_name: str | None = None,
        *,
        cache_namespace: str | None = None,
        excluded: frozenset[int] = frozenset(),
    ) -> BestWorker:
        """Where a request with this prompt should go. With a ``request_id`` it counts as running there until :meth:`free`,
        without one nothing is changed.

        Raises ``NoInstances`` when nobody serves, ``InvalidRequest`` for a request id that is running.
        """
        del update_indexer, block_mm_infos
        _refuse_override(router_config_override)
        dispatcher = await self._workers.ready()
        if request_id is not None and request_id in self._booked:
            raise InvalidRequest(f"request {request_id!r} is running already: free it first, or choose another id")
        request = RouteRequest(
            id=request_id or "",
            token_ids=token_ids,
            arrival=time.monotonic(),
            excluded=excluded,
            lora=lora_name,
            cache_salt=cache_namespace,
        )
        if request_id is None:
            route = await dispatcher.query(request)
            return BestWorker(route.worker_id, route.dp_rank or 0, route.overlap_blocks)
        workers = {worker: view for worker, view in dispatcher.workers.items() if worker not in excluded}
        decision = (dispatcher.router.select([request], workers) or [None])[0] if workers else None
        if not isinstance(decision, Route) or decision.worker_id not in workers:
            raise NoInstances(f"no worker of {self._endpoint.path} can take the request")
        view = workers[decision.worker_id]
        self._booked[request_id] = (request, view)
        view.inflight += 1
        view.inflight_tokens += len(token_ids)
        return BestWorker(view.id, decision.dp_rank or 0, decision.overlap_blocks)

    async def get_overlap_scores(
        self,
        token_ids: list[int],
        router_config_override: Mapping[str, Any] | None = None,
        block_mm_infos: Any = None,
        lora_name: str | None = None,
        include_shared: bool = True,
        cache_namespace: str | None = None,
    ) -> dict[str, Any]:
        """What each rank of each worker has of the prompt, by tier; there is no cache that workers share."""
        del router_config_override, block_mm_infos, include_shared
        dispatcher = await self._workers.ready()
        request = RouteRequest(id="", token_ids=token_ids, lora=lora_name, cache_salt=cache_namespace)
        scores = dispatcher.router.overlap_scores(request, dispatcher.workers)
        block_size = self._workers.block_size or 0
        return {
            "block_size": block_size,
            "num_blocks": len(token_ids) // block_size if block_size else 0,
            "shared_cache": {"enabled": False, "ranges": []},
            "workers": [_score_row(worker, score) for worker, ranks in scores.items() for score in ranks],
        }

    async def mark_prefill_complete(self, request_id: str) -> None:
        """Of a request that :meth:`best_worker` placed: it gives tokens. An unknown one is ignored."""
        booked = self._booked.get(request_id)
        if booked is not None:
            request, view = booked
            (await self._workers.ready()).router.tell("first_token", request, view.id)

    async def free(self, request_id: str) -> None:
        """Of a request that :meth:`best_worker` placed: it is over. An unknown one is ignored."""
        booked = self._booked.pop(request_id, None)
        if booked is not None:
            request, view = booked
            view.inflight -= 1
            view.inflight_tokens -= len(request.token_ids)
            dispatcher = await self._workers.ready()
            outcome: Outcome = "completed"
            dispatcher.router.tell("finished", request, view.id, outcome)
            dispatcher.changed()

    async def get_potential_loads(self, token_ids: list[int]) -> list[dict[str, int]]:
        """What each worker would carry with this prompt, whatever it has cached."""
        workers = (await self._workers.ready()).workers
        return [
            {
                "worker_id": view.id,
                "dp_rank": 0,
                "potential_prefill_tokens": view.inflight_tokens + view.inflight_tokens_elsewhere + len(token_ids),
                "potential_decode_blocks": view.load.kv_used_blocks if view.load is not None else 0,
            }
            for view in workers.values()
        ]

    # --- requests ------------------------------------------------------------------------------------------------------------

    async def generate(
        self,
        token_ids: list[int],
        model: str,
        stop_conditions: Mapping[str, Any] | None = None,
        sampling_options: Mapping[str, Any] | None = None,
        output_options: Mapping[str, Any] | None = None,
        router_config_override: Mapping[str, Any] | None = None,
        worker_id: int | None = None,
        dp_rank: int | None = None,
        extra_args: Mapping[str, Any] | None = None,
        *,
        lora_name: str | None = None,
        cache_namespace: str | None = None,
        session_id: str | None = None,
        routing_constraints: RoutingConstraints | None = None,
        context: Context | None = None,
    ) -> AsyncIterator[dict[str, Any]]:
        """Chunks ``{"token_ids": [...]}``, the last with a ``finish_reason``. A worker that dies is replaced by another.

        ``worker_id`` pins the request, ``routing_constraints`` choose by taints. Iterating raises what the last worker failed
        with; closing the iterator cancels.
        """
        del model
        _refuse_override(router_config_override)
        dispatcher = await self._workers.ready()
        try:
            request = request_of(uuid.uuid4().hex, token_ids, stop_conditions, sampling_options, output_options, extra_args)
        except msgspec.ValidationError as error:
            raise InvalidRequest(f"the request cannot be sent to an engine: {error}") from None
        route = RouteRequest(
            id=request.id,
            token_ids=token_ids,
            max_tokens=request.stop.max_tokens,
            arrival=time.monotonic(),
            pinned=worker_id,
            lora=lora_name,
            cache_salt=cache_namespace,
            session=session_id,
            hints=_hints(dp_rank, routing_constraints),
        )
        receiver = _Chunks()
        receiver.sequence = dispatcher.submit(route, request, context or Context(), receiver)
        return receiver.stream()

    async def generate_from_request(
        self, request: Mapping[str, Any], *, context: Context | None = None
    ) -> AsyncIterator[dict[str, Any]]:
        """:meth:`generate` for a request as a handler gets it: ``token_ids``, ``stop_conditions``, ``sampling_options``,
        ``output_options``, ``extra_args``; in ``routing`` ``backend_instance_id``, ``dp_rank``, ``lora_name``, ``cache_salt``."""
        if "token_ids" not in request:
            raise InvalidRequest("the request has no token_ids: hand on what the endpoint's handler got")
        routing: Mapping[str, Any] = request.get("routing") or {}
        return await self.generate(
            list(request["token_ids"]),
            str(request.get("model") or ""),
            request.get("stop_conditions"),
            request.get("sampling_options"),
            request.get("output_options"),
            worker_id=routing.get("backend_instance_id"),
            dp_rank=routing.get("dp_rank"),
            extra_args=request.get("extra_args"),
            lora_name=routing.get("lora_name"),
            cache_namespace=routing.get("cache_salt"),
            context=context,
        )

    # --- life ----------------------------------------------------------------------------------------------------------------

    async def close(self) -> None:
        await self._workers.close()


def _hints(dp_rank: int | None, constraints: RoutingConstraints | None) -> RoutingHints:
    if dp_rank is None and constraints is None:
        return NO_HINTS
    taints = constraints or RoutingConstraints()
    return RoutingHints(dp_rank=dp_rank, required_taints=taints.required_taints, preferred_taints=taints.preferred_taints)


def _score_row(worker_id: int, score: OverlapScore) -> dict[str, int]:
    return {
        "worker_id": worker_id,
        "dp_rank": score.dp_rank,
        "device_blocks": score.device,
        "host_pinned_blocks": score.host,
        "disk_blocks": score.disk,
        "host_pinned_extension_blocks": score.host,
        "disk_extension_blocks": score.disk,
        "shared_beyond_device_blocks": 0,
    }


class _Chunks:
    """Receives one sequence, for a caller that iterates."""

    sequence: Sequence

    def __init__(self) -> None:
        self.generated: list[int] = []
        self.on_items: Callable[[list[Any]], None] = self._items
        self._chunks: deque[dict[str, Any]] = deque()
        self._error: DynamoError | None = None
        self._over = False
        self._changed = asyncio.Event()

    def on_routed(self, worker_id: int) -> None:
        del worker_id

    def on_error(self, error: DynamoError) -> None:
        self._error = error
        self._over = True
        self._changed.set()

    async def stream(self) -> AsyncIterator[dict[str, Any]]:
        try:
            while True:
                while self._chunks:
                    yield self._chunks.popleft()
                if self._error is not None:
                    raise self._error
                if self._over:
                    return
                self._changed.clear()
                await self._changed.wait()
        finally:
            with contextlib.suppress(RuntimeError):  # the loop is closed: so are the streams
                self.sequence.cut("cancelled")

    def _items(self, items: list[Any]) -> None:
        for item in items:
            if self._over:
                return
            chunk = {"token_ids": [item]} if isinstance(item, int) else msgspec.to_builtins(decode_chunk(item))
            chunk.setdefault("token_ids", [])
            self.generated.extend(chunk["token_ids"])
            self._chunks.append(chunk)
            if chunk.get("finish_reason") is not None:
                self._over = True
                self.sequence.complete()
        self._changed.set()


def _refuse_override(override: Mapping[str, Any] | None) -> None:
    if override:
        raise ConfigError("router_config_override is not supported: make a KvRouter with that configuration")
