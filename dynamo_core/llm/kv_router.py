"""KV routing for programs of one's own: the router plugin, the workers of an endpoint and what they tell, put together."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import uuid
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, NamedTuple

import msgspec

from dynamo_core.contracts import (
    Context,
    Deleted,
    Instance,
    ModelCard,
    Outcome,
    Put,
    Route,
    RouterContext,
    RouteRequest,
    WorkerView,
)
from dynamo_core.errors import ConfigError, DynamoError, InvalidRequest, NoInstances
from dynamo_core.llm.payload import request_of
from dynamo_core.plugins import activate
from dynamo_core.runtime import Client
from dynamo_core.runtime.component import Endpoint
from dynamo_core.serving.dispatch import Dispatcher
from dynamo_core.serving.router_guard import RouterGuard
from dynamo_core.serving.sequence import Sequence
from dynamo_core.serving.wire import MODELS_PREFIX, ModelKey, decode_card, decode_chunk
from dynamo_core.serving.worker_feed import WorkerFeed

__all__ = ["BestWorker", "KvRouter", "KvRouterConfig"]

_log = logging.getLogger(__name__)

_PLUGIN = "kv-router"


class KvRouterConfig(dict[str, Any]):
    """Keyword arguments for the plugin's configuration, which checks them; see ``docs/plugins.md``."""


class BestWorker(NamedTuple):
    worker_id: int
    dp_rank: int
    overlap_blocks: int


class KvRouter:
    """Chooses among the instances of ``endpoint``, and calls them. Resolves plugin ``kv-router``; raises PluginError without it.

    The first awaited call connects; what it holds ends with the endpoint's runtime or by :meth:`close`.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        block_size: int,
        kv_router_config: Mapping[str, Any] | None = None,
        *,
        migration_limit: int = 3,
    ) -> None:
        compiled = activate((_PLUGIN,), tables={_PLUGIN: dict(kv_router_config or {})}, source="KvRouter(kv_router_config)")
        self._provider = compiled.router(_PLUGIN)
        self._faults = compiled.faults
        self._endpoint = endpoint
        self._block_size = block_size
        self._migration_limit = migration_limit
        self._starting: asyncio.Task[Dispatcher] | None = None
        self._cards: dict[int, ModelCard] = {}
        self._feeds: dict[int, WorkerFeed] = {}
        self._client: Client | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._booked: dict[str, tuple[RouteRequest, WorkerView]] = {}

    # --- questions -----------------------------------------------------------------------------------------------------------

    async def best_worker(
        self,
        token_ids: list[int],
        router_config_override: Mapping[str, Any] | None = None,
        request_id: str | None = None,
        *,
        excluded: frozenset[int] = frozenset(),
    ) -> BestWorker:
        """Where a request with this prompt should go. With a ``request_id`` it counts as running there until :meth:`free`.

        Raises ``NoInstances`` when nobody serves, ``InvalidRequest`` for a request id that is running.
        """
        _refuse_override(router_config_override)
        dispatcher = await self._started()
        if request_id is not None and request_id in self._booked:
            raise InvalidRequest(f"request {request_id!r} is running already: free it first, or choose another id")
        request = RouteRequest(id=request_id or "", token_ids=token_ids, arrival=time.monotonic(), excluded=excluded)
        workers = {worker: view for worker, view in dispatcher.workers.items() if worker not in excluded}
        decision = (dispatcher.router.select([request], workers) or [None])[0] if workers else None
        if not isinstance(decision, Route) or decision.worker_id not in workers:
            raise NoInstances(f"no worker of {self._endpoint.path} can take the request")
        view = workers[decision.worker_id]
        if request_id is None:
            dispatcher.router.tell("finished", request, view.id, "cancelled")
        else:
            self._booked[request_id] = (request, view)
            view.inflight += 1
            view.inflight_tokens += len(token_ids)
        return BestWorker(view.id, 0, decision.overlap_blocks)

    async def mark_prefill_complete(self, request_id: str) -> None:
        """Of a request that :meth:`best_worker` placed: it gives tokens. An unknown one is ignored."""
        booked = self._booked.get(request_id)
        if booked is not None:
            request, view = booked
            (await self._started()).router.tell("first_token", request, view.id)

    async def free(self, request_id: str) -> None:
        """Of a request that :meth:`best_worker` placed: it is over. An unknown one is ignored."""
        booked = self._booked.pop(request_id, None)
        if booked is not None:
            request, view = booked
            view.inflight -= 1
            view.inflight_tokens -= len(request.token_ids)
            outcome: Outcome = "completed"
            (await self._started()).router.tell("finished", request, view.id, outcome)

    async def get_potential_loads(self, token_ids: list[int]) -> list[dict[str, int]]:
        """What each worker would carry with this prompt, whatever it has cached."""
        workers = (await self._started()).workers
        return [
            {
                "worker_id": view.id,
                "dp_rank": 0,
                "potential_prefill_tokens": view.inflight_tokens + len(token_ids),
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
        context: Context | None = None,
    ) -> AsyncIterator[dict[str, Any]]:
        """Chunks ``{"token_ids": [...]}``, the last with a ``finish_reason``. A worker that dies is replaced by another.

        ``worker_id`` pins the request. Iterating raises what the last worker failed with; closing the iterator cancels.
        """
        del model, dp_rank
        _refuse_override(router_config_override)
        dispatcher = await self._started()
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
        )
        receiver = _Chunks()
        receiver.sequence = dispatcher.submit(route, request, context or Context(), receiver)
        return receiver.stream()

    # --- life ----------------------------------------------------------------------------------------------------------------

    async def close(self) -> None:
        if self._starting is None:
            return
        starting, self._starting = self._starting, None
        dispatcher = (await asyncio.gather(starting, return_exceptions=True))[0]
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.gather(self._watcher, return_exceptions=True)
        for feed in self._feeds.values():
            feed.close()
        if isinstance(dispatcher, Dispatcher):
            dispatcher.close()
        if self._client is not None:
            await self._client.close()

    async def _started(self) -> Dispatcher:
        if self._starting is None:
            self._starting = asyncio.create_task(self._start())
        return await asyncio.shield(self._starting)

    async def _start(self) -> Dispatcher:
        endpoint = self._endpoint
        spec = self._provider.spec
        self._client = client = await endpoint.client()
        context = RouterContext(model=endpoint.path, block_size=self._block_size, clock=time.monotonic)
        guard = RouterGuard(spec.factory(self._provider.config, context), endpoint.path, self._provider.plugin, self._faults)
        dispatcher = Dispatcher(endpoint.path, guard, migration_limit=self._migration_limit)
        synced = asyncio.Event()
        self._watcher = asyncio.create_task(self._watch(dispatcher, client, synced), name=f"cards of {endpoint.path}")
        endpoint.runtime.on_shutdown(self.close)
        await synced.wait()
        client.on_change(
            lambda instance: self._add(dispatcher, client, instance), lambda worker_id: self._remove(dispatcher, worker_id)
        )
        return dispatcher

    async def _watch(self, dispatcher: Dispatcher, client: Client, synced: asyncio.Event) -> None:
        """A worker's card may come before or after its instance."""
        endpoint = self._endpoint
        prefix = f"{MODELS_PREFIX}{endpoint.namespace}/{endpoint.component}/{endpoint.name}/"
        async for event in endpoint.runtime.discovery.watch(prefix):
            if not isinstance(event, (Put, Deleted)):
                synced.set()
                continue
            key = ModelKey.parse(event.key)
            card = decode_card(event.value) if isinstance(event, Put) else None
            if key is None:
                continue
            if card is None:
                self._cards.pop(key.instance_id, None)
            elif self._cards.get(key.instance_id) != card:
                self._cards[key.instance_id] = card
                self._renew(dispatcher, client, key.instance_id)

    def _renew(self, dispatcher: Dispatcher, client: Client, worker_id: int) -> None:
        instance = next((one for one in client.instances() if one.instance_id == worker_id), None)
        if instance is not None and worker_id in dispatcher.workers:
            self._remove(dispatcher, worker_id)
            self._add(dispatcher, client, instance)

    def _add(self, dispatcher: Dispatcher, client: Client, instance: Instance) -> None:
        worker_id = instance.instance_id
        card = self._cards.get(worker_id) or ModelCard(name="", path="", block_size=self._block_size)
        view = WorkerView(worker_id, card)
        dispatcher.add_worker(view, client)
        self._feeds[worker_id] = WorkerFeed(self._endpoint.runtime.event_plane, instance.events, view, dispatcher, client)

    def _remove(self, dispatcher: Dispatcher, worker_id: int) -> None:
        feed = self._feeds.pop(worker_id, None)
        if feed is not None:
            feed.close()
        dispatcher.remove_worker(worker_id)


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
