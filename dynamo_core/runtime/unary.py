"""Endpoints with exactly one response."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dynamo_core.contracts.context import Context
from dynamo_core.errors import EngineError
from dynamo_core.runtime.client import Client
from dynamo_core.runtime.response import ResponseStream

if TYPE_CHECKING:
    from dynamo_core.runtime.component import Endpoint

__all__ = ["UnaryClient", "serve_unary_endpoint"]


class UnaryClient:
    """Calls round-robin, as :meth:`Client.round_robin <dynamo_core.runtime.Client.round_robin>` does."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def complete(self, request: Any, *, context: Context | None = None, instance_id: int | None = None) -> Any:
        """The one response. Raises what the handler raised, and ``EngineError`` when there was none or more than one."""
        client = self._client
        if instance_id is None:
            stream = client.round_robin(request, annotated=False, context=context)
        else:
            stream = client.direct(request, instance_id, annotated=False, context=context)
        try:
            items = [item async for item in _first(stream, 2)]
        finally:
            await stream.aclose()
        if len(items) != 1:
            many = "no response" if not items else "more than one response"
            raise EngineError(f"the unary endpoint {client.endpoint.path} gave {many}")
        return items[0]


async def serve_unary_endpoint(
    endpoint: Endpoint,
    handler: Callable[..., Awaitable[Any]],
    *,
    graceful_shutdown: bool = True,
    metrics_labels: Sequence[tuple[str, str]] | None = None,
    health_check_payload: Mapping[str, Any] | None = None,
) -> None:
    """:meth:`Endpoint.serve_unary_endpoint` in its other spelling."""
    await endpoint.serve_unary_endpoint(handler, graceful_shutdown, metrics_labels, health_check_payload)


async def _first(stream: ResponseStream, count: int) -> AsyncIterator[Any]:
    async for item in stream:
        yield item
        count -= 1
        if not count:
            return
