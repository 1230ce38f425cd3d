"""``/metrics``: the frontends' series and, with a label ``worker_id``, the engines' own."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeAlias

from litestar import Response, get
from litestar.handlers import HTTPRouteHandler
from litestar.types import Scope
from prometheus_client import Metric
from prometheus_client.exposition import choose_encoder

from dynamo_core.errors import DynamoError
from dynamo_core.http.exchange import exchange_of
from dynamo_core.http.gate import PUBLIC
from dynamo_core.http.observe import FrontendMetrics
from dynamo_core.runtime.exposition import joined, labelled, read_families, render
from dynamo_core.serving.manager import ModelManager

__all__ = ["Peers", "merge_worker_metrics", "metrics_route"]

_log = logging.getLogger(__name__)

Peers: TypeAlias = Callable[[], Awaitable[str]]
"""Prometheus text of all frontends of the run, this one among them, summed. Raises ``DynamoError``."""


def metrics_route(metrics: FrontendMetrics, manager: ModelManager, peers: Peers | None = None) -> HTTPRouteHandler:
    @get("/metrics", tags=["Operations"], summary="Metrics", opt={PUBLIC: True}, media_type="text/plain")
    async def get_metrics(scope: Scope) -> Response[bytes]:
        """Prometheus text, or OpenMetrics for those that ask."""
        accept = exchange_of(scope).headers.get("accept", "")
        texts, summed = await asyncio.gather(manager.worker_metrics(), _ask(peers))
        if not texts and summed is None:
            encode, content_type = choose_encoder(accept)
            return Response(encode(metrics.registry), media_type=content_type)
        own = [] if summed is not None else list(metrics.registry.collect())

        def put_together() -> tuple[bytes, str]:
            return render(joined(own if summed is None else read_families(summed), merge_worker_metrics(texts)), accept)

        body, content_type = await asyncio.to_thread(put_together)
        return Response(body, media_type=content_type)

    return get_metrics


def merge_worker_metrics(texts: Mapping[int, bytes]) -> list[Metric]:
    """The families of all workers, each once, samples labelled with ``worker_id`` in hexadecimal.

    Text that is not Prometheus's is left out with a log line.
    """
    workers: dict[str, list[Metric]] = {}
    for worker, text in texts.items():
        try:
            workers[f"{worker:x}"] = read_families(text)
        except ValueError as error:
            _log.warning("the metrics of worker %x cannot be read: %s", worker, error)
    return labelled(workers, "worker_id")


async def _ask(peers: Peers | None) -> str | None:
    """``None``: this frontend has only its own series to tell."""
    if peers is None:
        return None
    try:
        return await peers()
    except DynamoError as error:
        _log.warning("the other frontends' metrics are missing from this scrape: %s", error.message)
        return None
