"""What one worker tells between requests: its KV events and its load."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from dynamo_core.contracts import ClientStream, Context, EventPlane, EventSubscription, KvBatch, StreamReceiver, WorkerView
from dynamo_core.serving.dispatch import Dispatcher
from dynamo_core.serving.follower import Follower, Numbered, Source
from dynamo_core.serving.kv_journal import KV_STATE_ENDPOINT
from dynamo_core.serving.sequence import WorkerClient
from dynamo_core.serving.wire import KV_TOPIC, LOAD_TOPIC, decode_kv_batch, decode_load

__all__ = ["WorkerFeed"]

_log = logging.getLogger(__name__)


class WorkerFeed:
    """Subscribes to one worker and passes what comes to its dispatcher's router: what its caches hold, then batches in order.

    ``client`` reaches the worker; if it can ask for the KV state, what was missed is fetched, else it is announced as lost.
    """

    def __init__(
        self, plane: EventPlane, address: str, worker: WorkerView, dispatcher: Dispatcher, client: WorkerClient | None = None
    ) -> None:
        self._worker = worker
        self._dispatcher = dispatcher
        self._subscriptions: list[EventSubscription] = []
        self._kv: Follower[KvBatch] | None = None
        if not address:
            return
        try:
            self._subscriptions.append(plane.subscribe(address, LOAD_TOPIC, self._on_load))
        except ValueError as error:
            _log.warning(
                "worker %x tells nothing of its load and caches: %s; give all processes one event plane", worker.id, error
            )
            return
        if worker.card.kv_events and dispatcher.router.has("kv_events"):
            source = Source(
                f"KV events of worker {worker.id:x}", number=_number, decode=self._decode, fetch=_fetching(client, worker.id)
            )
            self._kv = Follower(source, self._apply, self._lost)
            self._subscriptions.append(plane.subscribe(address, KV_TOPIC, self._on_kv, self._kv.dropped))
            self._kv.begin()

    def close(self) -> None:
        for subscription in self._subscriptions:
            subscription.close()
        self._subscriptions.clear()
        if self._kv is not None:
            self._kv.close()

    def _on_load(self, payload: bytes) -> None:
        reading = decode_load(payload)
        if reading is None or reading.worker_id != self._worker.id:
            return
        if self._kv is not None:
            for rank, following in reading.kv_next.items():
                self._kv.at_least(rank, following)
        if reading.load != self._worker.load:
            self._worker.load = reading.load
            self._dispatcher.changed()

    def _on_kv(self, payload: bytes) -> None:
        batch = self._decode(payload)
        if batch is not None and self._kv is not None:
            self._kv.receive(batch)

    def _decode(self, payload: Any) -> KvBatch | None:
        batch = decode_kv_batch(payload) if isinstance(payload, bytes) else None
        return batch if batch is not None and batch.worker_id == self._worker.id else None

    def _apply(self, batch: KvBatch) -> None:
        self._dispatcher.router.tell("kv_events", batch)

    def _lost(self, rank: int) -> None:
        _log.warning(
            "KV events of worker %x, rank %d, were lost; what the router knew of its cache is void", self._worker.id, rank
        )
        self._dispatcher.router.tell("kv_lost", self._worker.id, rank)


def _number(batch: KvBatch) -> Numbered:
    return Numbered(batch.dp_rank, batch.seq)


def _fetching(client: Any, worker_id: int) -> Callable[[StreamReceiver], ClientStream] | None:
    open_beside = getattr(client, "open_beside", None)
    if open_beside is None:
        return None

    def fetch(receiver: StreamReceiver) -> ClientStream:
        stream: ClientStream = open_beside(worker_id, KV_STATE_ENDPOINT, None, Context(), receiver)
        return stream

    return fetch
