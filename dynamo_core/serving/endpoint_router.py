"""A router for the instances of one endpoint: they are followed through discovery, with their cards, KV events and loads."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from dynamo_core.contracts import Deleted, Instance, ModelCard, Put, RouterContext, Synced, WorkerView
from dynamo_core.errors import NoInstances
from dynamo_core.plugins import Faults, Provider
from dynamo_core.runtime import Client
from dynamo_core.runtime.component import Endpoint
from dynamo_core.serving.dispatch import Dispatcher
from dynamo_core.serving.router_guard import RouterGuard
from dynamo_core.serving.sequence import WorkerClient
from dynamo_core.serving.sharing import ModelSharing
from dynamo_core.serving.wire import MODELS_PREFIX, ModelKey, decode_card
from dynamo_core.serving.worker_feed import WorkerFeed

__all__ = ["EndpointRouter"]


class EndpointRouter:
    """Makes the router as soon as the block size is known: as given, or of the first card. The first :meth:`ready` connects; what
    is held ends with the endpoint's runtime or by :meth:`close`."""

    def __init__(
        self,
        endpoint: Endpoint,
        provider: Provider,
        faults: Faults,
        *,
        block_size: int | None = None,
        migration_limit: int = 3,
        sharing: ModelSharing | None = None,
        wrap: Callable[[Client], WorkerClient] = lambda client: client,
    ) -> None:
        self.endpoint = endpoint
        self.cards: dict[int, ModelCard] = {}
        self.feeds: dict[int, WorkerFeed] = {}
        self.block_size = block_size
        """Tokens; ``None`` until a card tells."""
        self._provider = provider
        self._faults = faults
        self._migration_limit = migration_limit
        self._sharing = sharing
        self._wrap = wrap
        self.dispatcher: Dispatcher | None = None
        """``None`` until the block size is known."""
        self._client: Client | None = None
        self._worker_client: WorkerClient | None = None
        self._starting: asyncio.Task[None] | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._instances: dict[int, Instance] = {}

    async def connect(self) -> None:
        """Returns when what discovery holds is known."""
        if self._starting is None:
            self._starting = asyncio.create_task(self._start())
        await asyncio.shield(self._starting)

    async def ready(self) -> Dispatcher:
        """Raises :class:`NoInstances` as long as the block size is unknown because nobody serves."""
        await self.connect()
        if self.dispatcher is None:
            raise NoInstances(f"nobody serves {self.endpoint.path} yet", retry_after=1)
        return self.dispatcher

    async def close(self) -> None:
        if self._starting is None:
            return
        starting, self._starting = self._starting, None
        await asyncio.gather(starting, return_exceptions=True)
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.gather(self._watcher, return_exceptions=True)
        for feed in self.feeds.values():
            feed.close()
        if self.dispatcher is not None:
            self.dispatcher.close()
            await self.dispatcher.router.close()
        if self._client is not None:
            await self._client.close()

    async def _start(self) -> None:
        endpoint = self.endpoint
        self._client = client = await endpoint.client()
        self._worker_client = self._wrap(client)
        if self.block_size is not None:
            self._make_dispatcher(self.block_size)
        synced = asyncio.Event()
        self._watcher = asyncio.create_task(self._watch(synced), name=f"cards of {endpoint.path}")
        endpoint.runtime.on_shutdown(self.close)
        await synced.wait()
        client.on_change(self._added, self._removed)

    def _make_dispatcher(self, block_size: int) -> None:
        path, spec = self.endpoint.path, self._provider.spec
        context = RouterContext(
            model=path, block_size=block_size, clock=time.monotonic, wake=self._wake, runtime=self.endpoint.runtime
        )
        guard = RouterGuard(spec.factory(self._provider.config, context), path, self._provider.plugin, self._faults)
        self.block_size = block_size
        self.dispatcher = Dispatcher(path, guard, migration_limit=self._migration_limit, sharing=self._sharing)
        for instance in self._instances.values():
            self._serve(self.dispatcher, instance)

    def _wake(self) -> None:
        if self.dispatcher is not None:
            self.dispatcher.changed()

    # --- following discovery -------------------------------------------------------------------------------------------------

    async def _watch(self, synced: asyncio.Event) -> None:
        """A worker's card may come before or after its instance."""
        endpoint = self.endpoint
        prefix = f"{MODELS_PREFIX}{endpoint.namespace}/{endpoint.component}/{endpoint.name}/"
        async for event in endpoint.runtime.discovery.watch(prefix):
            if isinstance(event, Synced):
                synced.set()
                continue
            key = ModelKey.parse(event.key)
            if key is None:
                continue
            card = decode_card(event.value) if isinstance(event, Put) else None
            if card is not None and self.cards.get(key.instance_id) != card:
                self.cards[key.instance_id] = card
                self._learned(key.instance_id, card)
            elif isinstance(event, Deleted):
                self.cards.pop(key.instance_id, None)

    def _learned(self, worker_id: int, card: ModelCard) -> None:
        if self.dispatcher is None:
            self._make_dispatcher(card.block_size)
        elif worker_id in self.dispatcher.workers:  # it was taken for one without a card, or with another
            self._leave(self.dispatcher, worker_id)
            self._serve(self.dispatcher, self._instances[worker_id])

    def _added(self, instance: Instance) -> None:
        self._instances[instance.instance_id] = instance
        if self.dispatcher is not None:
            self._serve(self.dispatcher, instance)

    def _removed(self, worker_id: int) -> None:
        self._instances.pop(worker_id, None)
        if self.dispatcher is not None:
            self._leave(self.dispatcher, worker_id)

    def _serve(self, dispatcher: Dispatcher, instance: Instance) -> None:
        if self._worker_client is None:
            return
        worker_id = instance.instance_id
        card = self.cards.get(worker_id) or ModelCard(name="", path="", block_size=self.block_size or 0)
        view = WorkerView(worker_id, card)
        dispatcher.add_worker(view, self._worker_client)
        self.feeds[worker_id] = WorkerFeed(
            self.endpoint.runtime.event_plane, instance.events, view, dispatcher, self._worker_client
        )

    def _leave(self, dispatcher: Dispatcher, worker_id: int) -> None:
        feed = self.feeds.pop(worker_id, None)
        if feed is not None:
            feed.close()
        dispatcher.remove_worker(worker_id)
