"""KV routing for programs of one's own: the router plugin, the workers of an endpoint and what they tell, put together."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, NamedTuple, cast, get_args

import msgspec

from dynamo_core.contracts import (
    NO_HINTS,
    Context,
    KvStored,
    Outcome,
    Reject,
    Route,
    RouteRequest,
    RoutingHints,
    WorkerView,
)
from dynamo_core.errors import ConfigError, InvalidRequest, NoInstances
from dynamo_core.llm.chunks import Chunks
from dynamo_core.llm.model import RoutingConstraints
from dynamo_core.llm.payload import request_of
from dynamo_core.llm.router_answers import as_seen, dumped, load_row, score_row
from dynamo_core.llm.router_config import AisPerfConfig, LoadThresholdConfig, request_settings
from dynamo_core.plugins import activate
from dynamo_core.runtime.component import Endpoint
from dynamo_core.serving.dispatch import Dispatcher
from dynamo_core.serving.endpoint_router import EndpointRouter
from dynamo_core.serving.session_affinity import AffinityMode, SessionAffinity
from dynamo_core.serving.sharing import ModelSharing

__all__ = ["BestWorker", "KvRouter"]

_PLUGIN = "kv-router"


class BestWorker(NamedTuple):
    worker_id: int
    dp_rank: int
    overlap_blocks: int


class KvRouter:
    """Chooses among the instances of ``endpoint``, and calls them. Resolves plugin ``kv-router``; raises PluginError without it.

    ``block_size`` ``None``: of the first worker's card. With ``session_affinity_ttl_secs`` the requests of a session
    (``session_id``) follow each other, ``hard`` or ``soft``, until none came for so long. ``ais_perf_config`` is accepted and
    means nothing: the router learns how long prompts take. The first awaited call connects; what it holds ends with the
    endpoint's runtime or by :meth:`close`. ``workers`` replaces plugin and settings by a router that was made elsewhere.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        block_size: int | None = None,
        kv_router_config: Mapping[str, Any] | None = None,
        ais_perf_config: AisPerfConfig | None = None,
        session_affinity_ttl_secs: float | None = None,
        *,
        load_threshold_config: LoadThresholdConfig | None = None,
        session_affinity_mode: str = "hard",
        migration_limit: int = 3,
        workers: EndpointRouter | None = None,
    ) -> None:
        del ais_perf_config
        if workers is None:
            settings = dict(kv_router_config or {})
            if load_threshold_config is not None:
                settings |= load_threshold_config.settings()
            compiled = activate((_PLUGIN,), tables={_PLUGIN: settings}, source="KvRouter(kv_router_config)")
            workers = EndpointRouter(
                endpoint,
                compiled.router(_PLUGIN),
                compiled.faults,
                block_size=block_size,
                migration_limit=migration_limit,
                sharing=ModelSharing(endpoint.path, None, _sessions(session_affinity_ttl_secs, session_affinity_mode)),
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
        block_mm_infos: Sequence[Any] | None = None,
        lora_name: str | None = None,
        routing_constraints: RoutingConstraints | None = None,
        strict_priority: int = 0,
        policy_class: str | None = None,
        cache_namespace: str | None = None,
        *,
        session_id: str | None = None,
        excluded: frozenset[int] = frozenset(),
    ) -> BestWorker:
        """Where a request with this prompt should go. With a ``request_id`` it counts as running there until :meth:`free`,
        without one nothing is changed. ``update_indexer`` means nothing: what is booked is in the index, too.

        Raises ``NoInstances`` when nobody serves, ``InvalidRequest`` for a request id that is running, and what the router
        rejects the request with.
        """
        del update_indexer
        _refuse_images(block_mm_infos)
        hints = _hints(None, routing_constraints, router_config_override, strict_priority, policy_class)
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
            session=session_id,
            hints=hints,
        )
        if request_id is None:
            route = await dispatcher.query(request)
            return BestWorker(route.worker_id, route.dp_rank or 0, route.overlap_blocks)
        return self._book(dispatcher, request)

    def _book(self, dispatcher: Dispatcher, request: RouteRequest) -> BestWorker:
        workers = {worker: view for worker, view in dispatcher.workers.items() if worker not in request.excluded}
        dispatcher.sharing.pin(request, workers)
        decision = (dispatcher.router.select([request], workers) or [None])[0] if workers else None
        if isinstance(decision, Reject):
            raise decision.error
        if not isinstance(decision, Route) or decision.worker_id not in workers:
            raise NoInstances(f"no worker of {self._endpoint.path} can take the request")
        view = workers[decision.worker_id]
        self._booked[request.id] = (request, view)
        view.inflight += 1
        view.inflight_tokens += len(request.token_ids)
        if dispatcher.sharing.sessions is not None and request.session is not None:
            dispatcher.sharing.sessions.placed(request.session, view.id)
        return BestWorker(view.id, decision.dp_rank or 0, decision.overlap_blocks)

    async def get_overlap_scores(
        self,
        token_ids: list[int],
        router_config_override: Mapping[str, Any] | None = None,
        block_mm_infos: Sequence[Any] | None = None,
        lora_name: str | None = None,
        include_shared: bool = True,
        cache_namespace: str | None = None,
    ) -> dict[str, Any]:
        """What each rank of each worker has of the prompt, by tier; there is no cache that workers share."""
        del router_config_override, include_shared
        _refuse_images(block_mm_infos)
        dispatcher = await self._workers.ready()
        request = RouteRequest(id="", token_ids=token_ids, lora=lora_name, cache_salt=cache_namespace)
        scores = dispatcher.router.overlap_scores(request, dispatcher.workers)
        block_size = self._workers.block_size or 0
        return {
            "block_size": block_size,
            "num_blocks": len(token_ids) // block_size if block_size else 0,
            "shared_cache": {"enabled": False, "ranges": []},
            "workers": [score_row(worker, score) for worker, ranks in scores.items() for score in ranks],
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

    async def get_potential_loads(
        self,
        token_ids: list[int],
        block_mm_infos: Sequence[Any] | None = None,
        lora_name: str | None = None,
        cache_namespace: str | None = None,
    ) -> list[dict[str, int]]:
        """What each rank of each worker would carry with this prompt: tokens to compute (not those that are cached there), KV
        blocks of what runs, and how many requests run now."""
        _refuse_images(block_mm_infos)
        dispatcher = await self._workers.ready()
        request = RouteRequest(id="", token_ids=token_ids, lora=lora_name, cache_salt=cache_namespace)
        loads = dispatcher.router.potential_loads(request, dispatcher.workers)
        if loads is None:  # a router without an account of its own
            loads = {view.id: [as_seen(view, len(token_ids))] for view in dispatcher.workers.values()}
        return [load_row(worker, load) for worker, ranks in loads.items() for load in ranks]

    async def dump_events(self) -> str:
        """The router's index as a JSON list of stored events, one for each worker, rank and tier.

        A block's ``block_hash`` is its sequence hash, which names it together with all before it; the index has neither its
        ``tokens_hash`` nor its parent, and needs none to be made anew.
        """
        dispatcher = await self._workers.ready()
        events = [
            dumped(batch, event)
            for batch in dispatcher.router.known_blocks()
            for event in batch.events
            if isinstance(event, KvStored)
        ]
        for number, event in enumerate(events):
            event["event"]["event_id"] = number
        return msgspec.json.encode(events).decode()

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
        block_mm_infos: Sequence[Any] | None = None,
        multi_modal_data: Any = None,
        mm_routing_info: Any = None,
        routing_constraints: RoutingConstraints | None = None,
        response_buffer_size: int = 100,
        *,
        lora_name: str | None = None,
        cache_namespace: str | None = None,
        session_id: str | None = None,
        context: Context | None = None,
    ) -> AsyncIterator[dict[str, Any]]:
        """Chunks ``{"token_ids": [...]}``, the last with a ``finish_reason``. A worker that dies is replaced by another.

        ``worker_id`` pins the request, ``routing_constraints`` choose by taints, and ``router_config_override`` are settings of
        the router for this request alone. The worker is held back while ``response_buffer_size`` chunks wait to be read.
        Iterating raises what the last worker failed with; closing the iterator cancels. Images are refused.
        """
        del model
        _refuse_images(block_mm_infos, multi_modal_data, mm_routing_info)
        if response_buffer_size < 0:
            raise InvalidRequest(f"response_buffer_size is {response_buffer_size}, but must be 0 or more")
        hints = _hints(dp_rank, routing_constraints, router_config_override)
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
            hints=hints,
        )
        receiver = Chunks(response_buffer_size)
        receiver.sequence = dispatcher.submit(route, request, context or Context(), receiver)
        return receiver.stream()

    async def generate_from_request(
        self, request: Mapping[str, Any], response_buffer_size: int = 100, *, context: Context | None = None
    ) -> AsyncIterator[dict[str, Any]]:
        """:meth:`generate` for a request as a handler gets it: ``token_ids``, ``stop_conditions``, ``sampling_options``,
        ``output_options``, ``extra_args``, ``router_config_override``; in ``routing`` ``backend_instance_id``, ``dp_rank``,
        ``lora_name``, ``cache_salt``, ``session_id`` and ``routing_constraints``."""
        if "token_ids" not in request:
            raise InvalidRequest("the request has no token_ids: hand on what the endpoint's handler got")
        routing: Mapping[str, Any] = request.get("routing") or {}
        return await self.generate(
            list(request["token_ids"]),
            str(request.get("model") or ""),
            request.get("stop_conditions"),
            request.get("sampling_options"),
            request.get("output_options"),
            request.get("router_config_override"),
            worker_id=routing.get("backend_instance_id"),
            dp_rank=routing.get("dp_rank"),
            extra_args=request.get("extra_args"),
            multi_modal_data=request.get("multi_modal_data"),
            mm_routing_info=request.get("mm_routing_info"),
            routing_constraints=_constraints(routing.get("routing_constraints")),
            response_buffer_size=response_buffer_size,
            lora_name=routing.get("lora_name"),
            cache_namespace=routing.get("cache_salt"),
            session_id=routing.get("session_id"),
            context=context,
        )

    # --- life ----------------------------------------------------------------------------------------------------------------

    async def close(self) -> None:
        await self._workers.close()


def _sessions(ttl: float | None, mode: str) -> SessionAffinity | None:
    if mode not in get_args(AffinityMode):
        raise ConfigError(f"session_affinity_mode is {mode!r}: choose hard or soft")
    if ttl is not None and ttl <= 0:
        raise ConfigError(f"session_affinity_ttl_secs is {ttl}, but must be above 0")
    return None if ttl is None else SessionAffinity(ttl, cast("AffinityMode", mode))


def _hints(
    dp_rank: int | None,
    constraints: RoutingConstraints | None,
    override: Mapping[str, Any] | None,
    strict_priority: int = 0,
    policy_class: str | None = None,
) -> RoutingHints:
    settings = request_settings(override)
    if dp_rank is None and constraints is None and not settings and not strict_priority and not policy_class:
        return NO_HINTS
    taints = constraints or RoutingConstraints()
    return RoutingHints(
        strict_priority=strict_priority,
        service_class=policy_class or "",
        required_taints=taints.required_taints,
        preferred_taints=taints.preferred_taints,
        dp_rank=dp_rank,
        settings=settings,
    )


def _constraints(given: Any) -> RoutingConstraints | None:
    if given is None or isinstance(given, RoutingConstraints):
        return given
    return RoutingConstraints(given.get("required_taints"), given.get("preferred_taints"))


def _refuse_images(blocks: Sequence[Any] | None, data: Any = None, routing: Any = None) -> None:
    if data or routing or any(blocks or ()):
        raise InvalidRequest("KvRouter routes text: leave block_mm_infos, multi_modal_data and mm_routing_info out")
