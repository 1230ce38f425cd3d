"""What one worker tells between requests: its KV events and its load."""

from __future__ import annotations

import logging

from dynamo_core.contracts import EventPlane, EventSubscription, WorkerView
from dynamo_core.serving.dispatch import Dispatcher
from dynamo_core.serving.wire import KV_TOPIC, LOAD_TOPIC, decode_kv_batch, decode_load

__all__ = ["WorkerFeed"]

_log = logging.getLogger(__name__)


class WorkerFeed:
    """Subscribes to one worker and passes what comes to its dispatcher's router, batches in order and gaps announced."""

    def __init__(self, plane: EventPlane, address: str, worker: WorkerView, dispatcher: Dispatcher) -> None:
        self._worker = worker
        self._dispatcher = dispatcher
        self._next: dict[int, int] = {}
        self._subscriptions: list[EventSubscription] = []
        if address:
            self._subscriptions.append(plane.subscribe(address, LOAD_TOPIC, self._on_load))
            if worker.card.kv_events and dispatcher.router.has("kv_events"):
                self._subscriptions.append(plane.subscribe(address, KV_TOPIC, self._on_kv, self._on_lost))

    def close(self) -> None:
        for subscription in self._subscriptions:
            subscription.close()
        self._subscriptions.clear()

    def _on_load(self, payload: bytes) -> None:
        reading = decode_load(payload)
        if reading is not None and reading.worker_id == self._worker.id and reading.load != self._worker.load:
            self._worker.load = reading.load
            self._dispatcher.changed()

    def _on_kv(self, payload: bytes) -> None:
        batch = decode_kv_batch(payload)
        if batch is None or batch.worker_id != self._worker.id:
            return
        expected = self._next.get(batch.dp_rank)
        self._next[batch.dp_rank] = batch.seq + 1
        if expected is not None and batch.seq != expected:
            self._lost(batch.dp_rank)
        self._dispatcher.router.tell("kv_events", batch)

    def _on_lost(self) -> None:
        """The plane itself dropped something: of every rank, for all it knows."""
        for rank in self._next or (0,):
            self._lost(rank)
        self._next.clear()

    def _lost(self, rank: int) -> None:
        _log.warning(
            "KV events of worker %x, rank %d, were lost; what the router knew of its cache is void", self._worker.id, rank
        )
        self._dispatcher.router.tell("kv_lost", self._worker.id, rank)
