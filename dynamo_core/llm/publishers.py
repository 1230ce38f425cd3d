"""What a backend tells routers while it runs: what its prefix cache holds, and how loaded it is."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
import zmq
import zmq.asyncio

from dynamo_core.contracts import EngineLoad, KvEvent
from dynamo_core.errors import ConfigError, InvalidRequest
from dynamo_core.kv import VllmEventTranslator
from dynamo_core.llm.registration import registrations
from dynamo_core.runtime.component import Endpoint
from dynamo_core.serving.kv_journal import journal_of
from dynamo_core.serving.wire import LOAD_TOPIC, LoadReading, encode_event

__all__ = ["KvEventPublisher", "WorkerMetricsPublisher"]

_log = logging.getLogger(__name__)

_LOAD_SECONDS = 0.5
"""Readings are repeated, since the event plane has no memory for frontends that come later."""


class KvEventPublisher:
    """Names blocks by the engine's own hashes and translates them, so that any engine's will do.

    Make it in the process that serves ``endpoint``, on its event loop, after the runtime has started (``register_model`` starts
    it). With ``zmq_endpoint`` it relays what a vLLM publishes there, and ``publish_*`` are not needed. ``worker_id``,
    ``enable_local_indexer`` and ``batching_timeout_ms`` are accepted and mean nothing: the id is the runtime's, what the cache
    holds can always be asked for, and the events of a turn leave together. So are the tokens that stand for images and videos:
    blocks with these have names of their own in any case.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        worker_id: int | None = None,
        kv_block_size: int = 0,
        dp_rank: int = 0,
        enable_local_indexer: bool = False,
        zmq_endpoint: str | None = None,
        zmq_topic: str | None = None,
        batching_timeout_ms: int | None = None,
        image_token_id: int | None = None,
        kv_state_endpoint: str | None = None,
        video_token_id: int | None = None,
    ) -> None:
        del worker_id, enable_local_indexer, batching_timeout_ms, image_token_id, video_token_id
        if kv_state_endpoint is not None and kv_state_endpoint.removeprefix("dyn://") != endpoint.path:
            text = (
                f"KvEventPublisher: kv_state_endpoint is {kv_state_endpoint}, but events belong to {endpoint.path}; leave it out"
            )
            raise ConfigError(text)
        if kv_block_size < 1:
            raise ConfigError("KvEventPublisher needs kv_block_size, the tokens a block of the engine's cache")
        self._runtime = endpoint.runtime
        self._block_size = kv_block_size
        self._dp_rank = dp_rank
        self._translator = VllmEventTranslator(kv_block_size)
        component = f"{endpoint.namespace}.{endpoint.component}"
        self._journal = journal_of(self._runtime, component)
        self._encode = msgspec.msgpack.Encoder().encode
        self._tasks: list[asyncio.Task[object]] = [
            asyncio.create_task(registrations(self._runtime).publishes_kv_events(endpoint)),
            asyncio.create_task(self._journal.serve(self._runtime, component)),
        ]
        if zmq_endpoint is not None:
            self._tasks.append(asyncio.create_task(self._relay(zmq_endpoint, zmq_topic or "")))
        self._runtime.on_shutdown(self._ended)

    def publish_stored(
        self,
        token_ids: Sequence[int],
        num_block_tokens: Sequence[int],
        block_hashes: Sequence[int],
        parent_hash: int | None = None,
        block_mm_infos: Sequence[Any] | int | None = None,
        lora_name: str | None = None,
        is_eagle: bool | None = None,
        cache_salt: str | None = None,
        *,
        lora_id: int = 0,
    ) -> None:
        """Blocks that can be reused, in the order of their chain; the first one's predecessor is ``parent_hash``. Never blocks.

        Incomplete blocks and what follows them are left out. Dynamo's older order, ``lora_id`` and then ``parent_hash``, is known
        by the number in fifth place; ``lora_id`` means nothing, since routers know adapters by name. Raises InvalidRequest for
        lists that do not fit together, and for Eagle's overlapping blocks.
        """
        del lora_id
        if isinstance(block_mm_infos, int):
            parent_hash, block_mm_infos = block_mm_infos, None
        stored = self._stored(
            token_ids, num_block_tokens, block_hashes, parent_hash, block_mm_infos, lora_name, is_eagle, cache_salt
        )
        self._tell([stored])

    def publish_batch(self, events: Sequence[Mapping[str, Any]]) -> None:
        """``{"type": "stored", …}`` and ``{"type": "removed", "block_hashes": […]}`` with the arguments of
        :meth:`publish_stored` and :meth:`publish_removed`, in order and as one batch. If one of them is wrong, none is published.
        """
        told = []
        makers: dict[str, Callable[..., dict[str, Any]]] = {"stored": self._stored, "removed": self._removed}
        for place, event in enumerate(events):
            arguments = {key: value for key, value in event.items() if key != "type"}
            make = makers.get(str(event.get("type")))
            if make is None:
                raise InvalidRequest(f"publish_batch: event {place} has type {event.get('type')!r}: give stored or removed")
            try:
                told.append(make(**arguments))
            except TypeError as error:
                raise InvalidRequest(f"publish_batch: event {place} cannot be read: {error}") from None
        self._tell(told)

    def _stored(
        self,
        token_ids: Sequence[int],
        num_block_tokens: Sequence[int],
        block_hashes: Sequence[int],
        parent_hash: int | None = None,
        block_mm_infos: Sequence[Any] | None = None,
        lora_name: str | None = None,
        is_eagle: bool | None = None,
        cache_salt: str | None = None,
    ) -> dict[str, Any]:
        """In vLLM's words."""
        if is_eagle:
            raise InvalidRequest("KvEventPublisher: routers here do not know Eagle's overlapping blocks; leave is_eagle out")
        size, count = self._block_size, len(block_hashes)
        if len(num_block_tokens) != count or len(token_ids) < sum(num_block_tokens):
            raise InvalidRequest(
                f"KvEventPublisher: {count} block hashes need as many num_block_tokens ({len(num_block_tokens)}) and as many "
                f"tokens as these add up to ({len(token_ids)} of {sum(num_block_tokens)})"
            )
        complete = next((place for place, tokens in enumerate(num_block_tokens) if tokens != size), count)
        # Blocks with images get names that no prompt of text has.
        images: list[list[str]] = [[str(image)] if image else [] for image in (block_mm_infos or ())]
        extra = (images + [[] for _ in range(complete)])[:complete]
        if cache_salt and extra and parent_hash is None:
            extra[0].insert(0, cache_salt)
        return {
            "type": "BlockStored",
            "block_hashes": list(block_hashes[:complete]),
            "parent_block_hash": parent_hash,
            "token_ids": list(token_ids[: complete * size]),
            "block_size": size,
            "lora_name": lora_name,
            "extra_keys": extra if any(extra) else None,
        }

    def _removed(self, block_hashes: Sequence[int]) -> dict[str, Any]:
        return {"type": "BlockRemoved", "block_hashes": list(block_hashes)}

    def publish_removed(self, block_hashes: Sequence[int]) -> None:
        """Blocks that cannot be reused any longer. Never blocks."""
        self._tell([self._removed(block_hashes)])

    def publish_cleared(self) -> None:
        """The whole cache was dropped."""
        self._tell([{"type": "AllBlocksCleared"}])

    def shutdown(self) -> None:
        """Stop what runs in the background. The runtime's own shutdown does it, too."""
        for task in self._tasks:
            task.cancel()

    async def _ended(self) -> None:
        self.shutdown()
        for outcome in await asyncio.gather(*self._tasks, return_exceptions=True):
            if isinstance(outcome, Exception):
                _log.error("a publisher of KV events failed", exc_info=outcome)

    def _tell(self, events: list[dict[str, Any]]) -> None:
        self._publish(self._translator.translate(self._encode([0.0, events])))

    def _publish(self, events: Sequence[KvEvent]) -> None:
        if events:
            self._journal.publish(events, self._dp_rank)

    async def _relay(self, address: str, topic: str) -> None:
        with zmq.asyncio.Context() as context, context.socket(zmq.SUB) as socket:
            socket.linger = 0
            socket.connect(address)
            socket.subscribe(topic)
            expected: int | None = None
            while True:
                frames = await socket.recv_multipart()
                number = int.from_bytes(frames[1], "big") if len(frames) == 3 else None
                if expected is not None and number is not None and number != expected:
                    _log.warning("KV events of %s were lost; what routers know of this cache is void", address)
                    self._publish(self._translator.reset())
                expected = None if number is None else number + 1
                self._publish(self._translator.translate(frames[-1]))


class WorkerMetricsPublisher:
    """The backend's load, as routers weigh it. ``create_endpoint`` first; ``publish`` then never blocks."""

    def __init__(self) -> None:
        self._endpoint: Endpoint | None = None
        self._load = EngineLoad()
        self._blocks: dict[int, int] = {}
        """By rank."""
        self._task: asyncio.Task[None] | None = None

    async def create_endpoint(self, endpoint: Endpoint, metrics_labels: Any = None) -> None:
        """Begin to publish, for the process that serves ``endpoint``."""
        del metrics_labels
        await endpoint.runtime.start()
        self._endpoint = endpoint
        self._task = asyncio.create_task(self._repeat(), name=f"load of {endpoint.path}")
        endpoint.runtime.on_shutdown(self._ended)

    def publish(
        self,
        dp_rank: int | None = None,
        active_decode_blocks: int | None = None,
        kv_used_blocks: int | None = None,
        *,
        running: int = 0,
        waiting: int = 0,
        prefill_tokens: int = 0,
        kv_total_blocks: int = 0,
    ) -> None:
        """``active_decode_blocks`` is what runs holds of the cache, ``kv_used_blocks`` (the same unless given) what is taken.

        With several data-parallel ranks the blocks that each of them told last count together; the rest is the worker's.
        """
        self._blocks[dp_rank or 0] = (active_decode_blocks if kv_used_blocks is None else kv_used_blocks) or 0
        self._load = EngineLoad(
            running=running,
            waiting=waiting,
            prefill_tokens=prefill_tokens,
            kv_used_blocks=sum(self._blocks.values()),
            kv_total_blocks=kv_total_blocks,
        )
        self._send()

    def _send(self) -> None:
        if self._endpoint is None:
            raise ConfigError("WorkerMetricsPublisher: await create_endpoint(endpoint) before the first publish")
        runtime = self._endpoint.runtime
        runtime.event_plane.publish(LOAD_TOPIC, encode_event(LoadReading(runtime.instance_id, self._load)))

    async def _repeat(self) -> None:
        while True:
            await asyncio.sleep(_LOAD_SECONDS)
            self._send()

    async def _ended(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
