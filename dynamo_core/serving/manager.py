"""Which models this frontend serves, as discovery tells."""

from __future__ import annotations

import asyncio
import difflib
import logging
import time
from collections.abc import Callable

from dynamo_core.config import Settings
from dynamo_core.contracts import Context, Deleted, Instance, ModelCard, Put, RouterContext, Synced
from dynamo_core.errors import DynamoError, ModelNotFound, ServiceUnavailable, StartupError
from dynamo_core.plugins import Compiled, Provider
from dynamo_core.runtime import Client, DistributedRuntime
from dynamo_core.serving.model_text import ModelText, hasten, load_model_text, with_template
from dynamo_core.serving.replicas import ReplicaSync
from dynamo_core.serving.router_guard import RouterGuard
from dynamo_core.serving.served_model import ServedModel
from dynamo_core.serving.session_affinity import SessionAffinity
from dynamo_core.serving.sharing import ModelSharing
from dynamo_core.serving.threshold_board import ThresholdBoard
from dynamo_core.serving.timeouts import Timeouts
from dynamo_core.serving.tokenizer import Tokenizer
from dynamo_core.serving.wire import MODELS_PREFIX, ModelKey, decode_card

__all__ = ["ModelManager"]

_log = logging.getLogger(__name__)

_METRICS_SECONDS = 2.0


class ModelManager:
    """Follows the model cards and instances of one namespace. A worker serves once it has both a card and a live instance."""

    def __init__(
        self,
        runtime: DistributedRuntime,
        compiled: Compiled,
        router: Provider,
        settings: Settings,
        *,
        clock: Callable[[], float] = time.monotonic,
        load_text: Callable[[str], ModelText] = load_model_text,
    ) -> None:
        self.on_worker_lost: list[Callable[[str, int], None]] = []
        """Called with the model's name and the worker's id."""
        self.on_settled: list[Callable[[], object]] = []
        """Called in a thread when a model's text has taken its place in memory."""
        self._runtime = runtime
        self.broken: dict[str, str] = {}
        """Model → why this process cannot serve it: a folder that cannot be read, or a router that could not be made."""
        self._compiled = compiled
        self._faults = compiled.faults
        self._open_filter = compiled.output_filter
        self._router = router
        self._settings = settings
        self._clock = clock
        self._load_text = load_text
        self.replicas = ReplicaSync(runtime, settings.namespace) if settings.router_replica_sync else None
        """The other frontends."""
        self._models: dict[str, ServedModel] = {}
        self.thresholds = ThresholdBoard(runtime, settings.namespace, self._models)
        """Set while frontends run."""
        self._cards: dict[ModelKey, ModelCard] = {}
        self._clients: dict[str, Client] = {}
        self._loading: dict[str, asyncio.Task[None]] = {}
        self._following: dict[str, asyncio.Task[None]] = {}
        self._settling: set[asyncio.Task[None]] = set()
        self._watcher: asyncio.Task[None] | None = None
        self._synced = asyncio.Event()

    async def start(self) -> None:
        """Returns when what discovery held is known; models may still be loading. Raises StartupError when it does not tell."""
        if self.replicas is not None:
            try:
                await self.replicas.start()
            except ServiceUnavailable as error:
                raise StartupError(f"discovery does not tell which frontends there are: {error.message}") from None
        self.thresholds.start()
        self._watcher = asyncio.create_task(self._watch(), name="model cards")
        synced = asyncio.create_task(self._synced.wait())
        await asyncio.wait((self._watcher, synced), return_when=asyncio.FIRST_COMPLETED)
        if not synced.done():
            synced.cancel()
            try:
                self._watcher.result()
            except ServiceUnavailable as error:
                raise StartupError(f"discovery does not tell which models there are: {error.message}") from None

    async def stop(self) -> None:
        """Requests that run go on; those that wait fail."""
        running = (self._watcher, *self._loading.values(), *self._following.values(), *self._settling)
        tasks = [task for task in running if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.thresholds.close()
        for model in self._models.values():
            model.close()
            await model.router.close()
        for client in self._clients.values():
            await client.close()
        if self.replicas is not None:
            await self.replicas.close()

    def recompiled(self, compiled: Compiled) -> None:
        """Other plugins: streams that begin from here on get their filters. Routers stay, with what they have learned."""
        self._open_filter = compiled.output_filter
        for model in self._models.values():
            model.open_filter = compiled.output_filter

    # --- what the HTTP layer asks --------------------------------------------------------------------------------------------

    def get(self, name: str) -> ServedModel:
        """By name or alias. Raises ``ModelNotFound`` (404), or ``ServiceUnavailable`` (503) while the model is loading."""
        model = self._models.get(name)
        if model is not None:
            return model
        for card in self._cards.values():
            if name in (card.name, *card.aliases):
                model = self._models.get(card.name)
                if model is not None:
                    return model
                if card.name in self.broken:
                    raise ServiceUnavailable(f"The model {card.name!r} cannot be served here; the frontend's log says why.")
                raise ServiceUnavailable(f"The model {card.name!r} is loading; try again in a moment.", retry_after=1)
        for model in self._models.values():
            if name in model.card.aliases:
                return model
        raise ModelNotFound(self._unknown(name), param="model")

    def models(self) -> list[ServedModel]:
        """All that were ever ready, by name; look at ``ready``."""
        return [self._models[name] for name in sorted(self._models)]

    async def worker_metrics(self) -> dict[int, bytes]:
        """The engines' own Prometheus text by worker id; workers that do not answer within two seconds are left out."""
        clients = [client for path, client in self._clients.items() if path.endswith(".metrics")]
        calls = {worker: client for client in clients for worker in client.instance_ids()}
        texts = await asyncio.gather(*(_fetch(client, worker) for worker, client in calls.items()))
        return {worker: text for worker, text in zip(calls, texts, strict=True) if text is not None}

    def _unknown(self, name: str) -> str:
        known = sorted({known for card in self._cards.values() for known in (card.name, *card.aliases)} | set(self._models))
        if not known:
            return f"The model {name!r} does not exist; no worker has registered a model yet."
        nearest = difflib.get_close_matches(name, known, 1)
        hint = f"did you mean {nearest[0]!r}?" if nearest else f"available: {', '.join(known[:10])}."
        return f"The model {name!r} does not exist; {hint}"

    # --- following discovery -------------------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        prefix = f"{MODELS_PREFIX}{self._settings.namespace}/"
        listed: set[ModelKey] | None = set()
        key: ModelKey | None
        async for event in self._runtime.discovery.watch(prefix):
            if isinstance(event, Synced):
                for key in [key for key in self._cards if listed is not None and key not in listed]:
                    self._forget(key)
                listed = None
                self._synced.set()
                continue
            key = ModelKey.parse(event.key)
            if key is None:
                _log.warning("%s in discovery is not a model card's key", event.key)
            elif isinstance(event, Put):
                if listed is not None:
                    listed.add(key)
                self._learn(key, event.value)
            elif isinstance(event, Deleted):
                self._forget(key)

    def _learn(self, key: ModelKey, value: bytes) -> None:
        card = decode_card(value)
        if card is None:
            _log.warning("the model card %s cannot be read and is ignored", key)
            return
        known = self._cards.get(key)
        if known == card:
            return
        if known is not None:
            self._forget(key)
        self._cards[key] = card
        self._follow(key.path)
        self._follow(f"{key.namespace}.{key.component}.metrics")
        if card.name not in self._models and card.name not in self._loading:
            task = asyncio.create_task(self._load(card), name=f"loading {card.name}")
            self._loading[card.name] = task
            task.add_done_callback(lambda _: self._loading.pop(card.name, None))
        self._join(key)

    def _forget(self, key: ModelKey) -> None:
        card = self._cards.pop(key, None)
        if card is not None:
            self._leave(card.name, key.instance_id)

    async def _load(self, card: ModelCard) -> None:
        try:
            text = await asyncio.to_thread(self._load_text, card.path)
            if card.chat_template is not None:
                text = await asyncio.to_thread(with_template, text, card.chat_template)
            self._models[card.name] = made = self._make(card, text)
            self.thresholds.apply(made)
        except Exception as error:  # noqa: BLE001  # one broken model must not take the others along
            expected = isinstance(error, DynamoError)
            _log.error("model %s cannot be served: %s", card.name, error, exc_info=None if expected else error)
            self.broken[card.name] = str(error)
            return
        self.broken.pop(card.name, None)
        task = asyncio.create_task(self._settle(text.tokenizer, card.name), name=f"settling {card.name}")
        self._settling.add(task)
        task.add_done_callback(self._settling.discard)
        for key, other in tuple(self._cards.items()):
            if other.name == card.name:
                self._join(key)

    async def _settle(self, tokenizer: Tokenizer, model: str) -> None:
        if tokenizer.hastens:
            await hasten(tokenizer, model)
        for call in self.on_settled:
            await asyncio.to_thread(call)

    def _make(self, card: ModelCard, text: ModelText) -> ServedModel:
        spec = self._router.spec
        if spec.needs_kv_events and not card.kv_events:
            _log.warning("router %s needs KV events, and engine %s of model %s has none", spec.name, card.engine, card.name)
        context = RouterContext(
            model=card.name,
            block_size=card.block_size,
            clock=self._clock,
            wake=lambda: self._wake(card.name),
            runtime=self._runtime,
        )
        try:
            router = spec.factory(self._router.config, context)
        except Exception as error:  # noqa: BLE001  # a stranger's code: named
            self._compiled.blame(self._router, "router", error)
        self._compiled.check_router(self._router, router)
        return ServedModel(
            card,
            text,
            RouterGuard(router, card.name, self._router.plugin, self._faults),
            self._runtime.event_plane,
            prompt_cache_bytes=int(self._settings.prompt_cache_mb * (1 << 20)),
            migration_limit=self._settings.migration_limit,
            migration_max_seq_len=self._settings.migration_max_seq_len,
            breaker_failures=self._settings.circuit_breaker_failures,
            breaker_seconds=self._settings.circuit_breaker_secs,
            timeouts=Timeouts(
                total=self._settings.request_timeout_secs,
                first_token=self._settings.first_token_timeout_secs,
                token=self._settings.token_timeout_secs,
            ),
            clock=self._clock,
            open_filter=self._open_filter,
            sharing=self._share(card.name),
        )

    def _wake(self, model: str) -> None:
        served = self._models.get(model)
        if served is not None:
            served.wake()

    def _share(self, model: str) -> ModelSharing:
        ttl, mode = self._settings.router_session_affinity_ttl_secs, self._settings.router_session_affinity_mode
        sharing = ModelSharing(model, self.replicas, None if ttl is None else SessionAffinity(ttl, mode))
        if self.replicas is not None:
            self.replicas.join(model, sharing)
        return sharing

    # --- instances -----------------------------------------------------------------------------------------------------------

    def _follow(self, path: str) -> None:
        if path not in self._following:
            self._following[path] = asyncio.create_task(self._open_client(path), name=f"client of {path}")

    async def _open_client(self, path: str) -> None:
        while True:
            try:
                client = await self._runtime.endpoint(path).client()
                break
            except DynamoError as error:
                _log.warning("%s cannot be followed: %s; trying again", path, error)
        self._clients[path] = client
        client.on_change(
            lambda instance: self._instance_added(path, instance), lambda instance_id: self._instance_removed(path, instance_id)
        )

    def _instance_added(self, path: str, instance: Instance) -> None:
        for key in tuple(self._cards):
            if key.path == path and key.instance_id == instance.instance_id:
                self._join(key)

    def _instance_removed(self, path: str, instance_id: int) -> None:
        for key, card in tuple(self._cards.items()):
            if key.path == path and key.instance_id == instance_id:
                self._leave(card.name, instance_id)

    def _join(self, key: ModelKey) -> None:
        """A card and an instance that belong together make a worker, as soon as the model is loaded."""
        card = self._cards[key]
        model, client = self._models.get(card.name), self._clients.get(key.path)
        if model is None or client is None or key.instance_id in model.workers:
            return
        instance = next((instance for instance in client.instances() if instance.instance_id == key.instance_id), None)
        if instance is not None:
            model.add_worker(key.instance_id, card, client, instance.events)
            _log.info("worker %x serves model %s", key.instance_id, card.name)

    def _leave(self, name: str, worker_id: int) -> None:
        model = self._models.get(name)
        if model is not None and worker_id in model.workers:
            model.remove_worker(worker_id)
            _log.info("worker %x of model %s is gone", worker_id, name)
            for callback in tuple(self.on_worker_lost):
                callback(name, worker_id)


async def _fetch(client: Client, worker_id: int) -> bytes | None:
    try:
        async with asyncio.timeout(_METRICS_SECONDS):
            parts = [item async for item in client.direct(None, worker_id, annotated=False, context=Context())]
    except (DynamoError, TimeoutError) as error:
        _log.debug("worker %x does not tell its metrics: %s", worker_id, error)
        return None
    return b"".join(part for part in parts if isinstance(part, bytes))
