"""``dynamo_worker`` and ``dynamo_endpoint``, as code written for Dynamo uses them."""

from __future__ import annotations

import asyncio
import functools
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from dynamo_core.contracts.context import Context
from dynamo_core.errors import InvalidRequest
from dynamo_core.runtime.distributed import DistributedRuntime

__all__ = ["dynamo_endpoint", "dynamo_worker"]


def dynamo_worker(static: bool = False) -> Callable[[Callable[..., Awaitable[Any]]], Callable[..., Awaitable[Any]]]:
    """Give ``async def worker(runtime, …)`` a runtime made from ``DYN_DISCOVERY_BACKEND`` (file), ``DYN_REQUEST_PLANE`` (tcp),
    ``DYN_EVENT_PLANE`` (zmq) and ``DYN_NAMESPACE``, and shut it down when the worker returns. ``static`` means nothing."""
    del static

    def decorate(worker: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        @functools.wraps(worker)
        async def run(*args: Any, **kwargs: Any) -> Any:
            environ = os.environ
            runtime = DistributedRuntime(
                asyncio.get_running_loop(),
                environ.get("DYN_DISCOVERY_BACKEND") or environ.get("DYN_STORE_KV") or "file",
                environ.get("DYN_REQUEST_PLANE") or "tcp",
                event_plane=environ.get("DYN_EVENT_PLANE") or "zmq",
                namespace=environ.get("DYN_NAMESPACE") or "dynamo",
            )
            async with runtime:
                return await worker(runtime, *args, **kwargs)

        return run

    return decorate


def dynamo_endpoint(
    request_type: Any, response_type: Any
) -> Callable[[Callable[..., AsyncIterator[Any]]], Callable[..., AsyncIterator[Any]]]:
    """Parse the request (the last positional argument, or the one before the context) where ``request_type`` is a pydantic model:
    text as JSON, a mapping as fields. What does not fit is a ValueError, to remote clients an InvalidRequest, at the first item.
    ``response_type`` documents; it is not checked."""
    del response_type

    def decorate(handler: Callable[..., AsyncIterator[Any]]) -> Callable[..., AsyncIterator[Any]]:
        @functools.wraps(handler)
        async def wrapped(*args: Any, **kwargs: Any) -> AsyncIterator[Any]:
            place = len(args) - (2 if args and isinstance(args[-1], Context) else 1)
            if place >= 0:
                args = (*args[:place], _parsed(request_type, args[place]), *args[place + 1 :])
            async for item in handler(*args, **kwargs):
                yield _dumped(item)

        return wrapped

    return decorate


class _MisfitError(InvalidRequest, ValueError):
    pass


def _parsed(kind: Any, request: Any) -> Any:
    """pydantic's own validation; recognised by its methods, so that pydantic need not be installed."""
    try:
        if isinstance(request, (str, bytes)) and hasattr(kind, "model_validate_json"):
            return kind.model_validate_json(request)
        if isinstance(request, dict) and hasattr(kind, "model_validate"):
            return kind.model_validate(request)
    except ValueError as error:
        raise _MisfitError(str(error)) from None
    return request


def _dumped(item: Any) -> Any:
    return item.model_dump() if hasattr(item, "model_dump") else item
