"""A router as a component of its own, for any endpoint's workers: several frontends share its view."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import msgspec

from dynamo_core.contracts import Context
from dynamo_core.errors import InvalidRequest
from dynamo_core.llm.kv_router import KvRouter
from dynamo_core.llm.reservations import Reservations, ReservingClient, placement_of, route_request
from dynamo_core.plugins import Faults, Provider
from dynamo_core.runtime import DistributedRuntime, Served
from dynamo_core.runtime.component import Endpoint
from dynamo_core.serving.endpoint_router import EndpointRouter
from dynamo_core.serving.session_affinity import SessionAffinity
from dynamo_core.serving.sharing import ModelSharing

__all__ = ["RouterService"]

_log = logging.getLogger(__name__)

_EXPIRY_SECONDS = 300.0
"""After which a request that was booked by ``best_worker_id`` and never freed is forgotten."""


class RouterService:
    """Serves, below ``component`` (``namespace.router``):

    * ``generate``: a request in Dynamo's shape, streamed from the best worker;
    * ``best_worker_id``: token ids, or a map with ``token_ids``; answered by the worker's id, or by a map for a map. With a
      ``request_id`` it is booked until ``free`` says otherwise, for five minutes at most; ``mark_prefill_complete`` tells of
      its first token;
    * ``get_overlap_scores``: who has what of the prompt, by tier;
    * ``place``, ``progress`` and ``query``: for frontends with ``--router remote``.
    """

    def __init__(
        self,
        runtime: DistributedRuntime,
        provider: Provider,
        faults: Faults,
        *,
        endpoint: str,
        component: str,
        block_size: int | None = None,
        migration_limit: int = 3,
        sessions: SessionAffinity | None = None,
    ) -> None:
        self._runtime = runtime
        self._component = component
        self._workers = EndpointRouter(
            runtime.endpoint(endpoint),
            provider,
            faults,
            block_size=block_size,
            migration_limit=migration_limit,
            sharing=ModelSharing(endpoint, None, sessions),
            wrap=ReservingClient,
        )
        self.router = KvRouter(self._workers.endpoint, workers=self._workers)
        self.reservations = Reservations(lambda: self._workers.dispatcher, time.monotonic)
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._tasks: list[asyncio.Task[Any]] = []
        self._served: list[Served] = []

    async def start(self) -> None:
        """Returns when the endpoints are in discovery; workers may be still to come."""
        await self._workers.connect()
        for name, low in (("place", self.reservations.place), ("progress", self.reservations.progress)):
            self._served.append(await self._endpoint(name).serve(low))
        handlers: dict[str, Callable[..., Any]] = {
            "generate": self.generate,
            "best_worker_id": self.best_worker_id,
            "query": self.query,
            "get_overlap_scores": self.get_overlap_scores,
            "free": self.free,
            "mark_prefill_complete": self.mark_prefill_complete,
        }
        for name, handler in handlers.items():
            endpoint = self._endpoint(name)
            serving = endpoint.serve_endpoint(handler, metrics_labels=[("service", "router")])
            self._tasks.append(asyncio.create_task(serving, name=endpoint.path))
        client = await self._endpoint("generate").client()
        await client.wait_for_instances(10)
        await client.close()

    async def stop(self) -> None:
        for timer in self._timers.values():
            timer.cancel()
        for served in self._served:
            await served.close(0)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._workers.close()

    # --- endpoints -----------------------------------------------------------------------------------------------------------

    async def generate(self, request: Any, context: Context) -> AsyncIterator[dict[str, Any]]:
        asked = _mapping(request)
        routing = asked.get("routing") or {}
        stream = await self.router.generate(
            _token_ids(asked),
            str(asked.get("model") or ""),
            asked.get("stop_conditions"),
            asked.get("sampling_options"),
            asked.get("output_options"),
            asked.get("router_config_override"),
            routing.get("backend_instance_id", asked.get("worker_id")),
            routing.get("dp_rank", asked.get("dp_rank")),
            asked.get("extra_args"),
            lora_name=routing.get("lora_name") or asked.get("lora_name"),
            cache_namespace=routing.get("cache_salt") or asked.get("cache_namespace"),
            session_id=routing.get("session_id"),
            context=context,
        )
        async for chunk in stream:
            yield chunk

    async def best_worker_id(self, request: Any) -> AsyncIterator[Any]:
        asked: Mapping[str, Any] = {"token_ids": request} if isinstance(request, list) else _mapping(request)
        request_id = asked.get("request_id")
        best = await self.router.best_worker(
            _token_ids(asked),
            asked.get("router_config_override"),
            request_id,
            lora_name=asked.get("lora_name"),
            cache_namespace=asked.get("cache_namespace"),
        )
        if request_id is not None:
            loop = asyncio.get_running_loop()
            self._timers[request_id] = loop.call_later(_EXPIRY_SECONDS, self._expire, request_id)
        yield best.worker_id if isinstance(request, list) else best._asdict()

    async def query(self, request: Any) -> AsyncIterator[dict[str, Any]]:
        """Where a request to be placed would go, as :meth:`Reservations.place` takes it; books nothing."""
        dispatcher = await self._workers.ready()
        yield msgspec.to_builtins(placement_of(await dispatcher.query(route_request(request, time.monotonic()))))

    async def get_overlap_scores(self, request: Any) -> AsyncIterator[dict[str, Any]]:
        asked = _mapping(request)
        yield await self.router.get_overlap_scores(
            _token_ids(asked), lora_name=asked.get("lora_name"), cache_namespace=asked.get("cache_namespace")
        )

    async def free(self, request: Any) -> AsyncIterator[dict[str, str]]:
        request_id = _request_id(request)
        timer = self._timers.pop(request_id, None)
        if timer is not None:
            timer.cancel()
        await self.router.free(request_id)
        yield {"status": "ok"}

    async def mark_prefill_complete(self, request: Any) -> AsyncIterator[dict[str, str]]:
        await self.router.mark_prefill_complete(_request_id(request))
        yield {"status": "ok"}

    def _expire(self, request_id: str) -> None:
        self._timers.pop(request_id, None)
        _log.warning("request %s was never freed; it is forgotten", request_id)
        task = asyncio.create_task(self.router.free(request_id))
        self._tasks.append(task)
        task.add_done_callback(self._tasks.remove)

    def _endpoint(self, name: str) -> Endpoint:
        return self._runtime.endpoint(f"{self._component}.{name}")


def _mapping(request: Any) -> Mapping[str, Any]:
    if not isinstance(request, dict):
        raise InvalidRequest("the request must be a map with token_ids")
    return request


def _token_ids(asked: Mapping[str, Any]) -> list[int]:
    token_ids = asked.get("token_ids")
    if not isinstance(token_ids, list) or not all(isinstance(token, int) and 0 <= token < 1 << 32 for token in token_ids):
        raise InvalidRequest("token_ids must be a list of token ids", param="token_ids")
    return token_ids


def _request_id(request: Any) -> str:
    request_id = request.get("request_id") if isinstance(request, dict) else request
    if not isinstance(request_id, str):
        raise InvalidRequest("say the request_id, as a string or in a map", param="request_id")
    return request_id
