"""``/metrics``: this frontend's series and, with a label ``worker_id``, the engines' own."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping

from litestar import Response, get
from litestar.handlers import HTTPRouteHandler
from litestar.types import Scope
from prometheus_client import CollectorRegistry, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from dynamo_core.http.exchange import exchange_of
from dynamo_core.http.gate import PUBLIC
from dynamo_core.http.observe import FrontendMetrics
from dynamo_core.serving.manager import ModelManager

__all__ = ["merge_worker_metrics", "metrics_route"]

_log = logging.getLogger(__name__)


def metrics_route(metrics: FrontendMetrics, manager: ModelManager) -> HTTPRouteHandler:
    @get("/metrics", tags=["Operations"], summary="Metrics", opt={PUBLIC: True}, media_type="text/plain")
    async def get_metrics(scope: Scope) -> Response[bytes]:
        """Prometheus text, or OpenMetrics for those that ask."""
        encode, content_type = choose_encoder(exchange_of(scope).headers.get("accept", ""))
        body: bytes = encode(metrics.registry)
        texts = await manager.worker_metrics()
        if texts:
            families = await asyncio.to_thread(merge_worker_metrics, texts, _names(metrics.registry))
            registry = CollectorRegistry()
            registry.register(_Families(families))
            body = body.removesuffix(b"# EOF\n") + await asyncio.to_thread(encode, registry)
        return Response(body, media_type=content_type)

    return get_metrics


def merge_worker_metrics(texts: Mapping[int, bytes], taken: frozenset[str] = frozenset()) -> list[Metric]:
    """The families of all workers, each once, samples labelled with ``worker_id`` in hexadecimal.

    Families that are ``taken`` by this process are left out. Text that is not Prometheus's is left out with a log line.
    """
    merged: dict[str, Metric] = {}
    for worker, text in texts.items():
        try:
            families = list(text_string_to_metric_families(text.decode()))
        except ValueError as error:
            _log.warning("the metrics of worker %x cannot be read: %s", worker, error)
            continue
        for family in families:
            if family.name in taken:
                continue
            target = merged.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            for sample in family.samples:
                labels = {**sample.labels, "worker_id": f"{worker:x}"}
                target.add_sample(sample.name, labels, sample.value)
    return list(merged.values())


class _Families(Collector):
    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


def _names(registry: CollectorRegistry) -> frozenset[str]:
    return frozenset(family.name for family in registry.collect())
