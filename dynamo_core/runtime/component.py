"""The parts of an address: ``dyn://namespace.component.endpoint``."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from dynamo_core.contracts.discovery import Instance
from dynamo_core.contracts.planes import RequestHandler
from dynamo_core.errors import ConfigError
from dynamo_core.runtime.client import Client
from dynamo_core.runtime.handler import GeneratorHandler

if TYPE_CHECKING:
    from dynamo_core.runtime.distributed import DistributedRuntime

__all__ = ["Component", "Endpoint", "Namespace", "Served", "parse_endpoint"]

_log = logging.getLogger(__name__)

_PART = re.compile(r"[A-Za-z0-9_-]+")


def parse_endpoint(address: str) -> tuple[str, str, str]:
    """Namespace, component and endpoint of ``ns.comp.ep`` or ``dyn://ns.comp.ep``. Raises ConfigError."""
    parts = address.removeprefix("dyn://").split(".")
    if len(parts) != 3 or not all(_PART.fullmatch(part) for part in parts):
        raise ConfigError(f"{address!r} is no endpoint: write namespace.component.endpoint with letters, digits, - and _")
    return parts[0], parts[1], parts[2]


class Namespace:
    def __init__(self, runtime: DistributedRuntime, name: str) -> None:
        self.runtime = runtime
        self.name = name

    def component(self, name: str) -> Component:
        return Component(self, name)


class Component:
    def __init__(self, namespace: Namespace, name: str) -> None:
        self.namespace = namespace
        self.name = name

    async def create_service(self) -> None:
        """Nothing is to be done; kept for code that was written when there was."""

    def endpoint(self, name: str) -> Endpoint:
        return Endpoint(self.namespace.runtime, f"{self.namespace.name}.{self.name}.{name}")


class Endpoint:
    def __init__(self, runtime: DistributedRuntime, path: str) -> None:
        self.runtime = runtime
        self.namespace, self.component, self.name = parse_endpoint(path)
        self.path = f"{self.namespace}.{self.component}.{self.name}"

    async def serve(self, handler: RequestHandler, *, events: str = "") -> Served:
        """Serve with a handler that writes into a sink. ``events`` is the address where this instance publishes its events.

        Listens first, then appears in discovery.
        """
        runtime = self.runtime
        await runtime.start()
        address = await runtime.request_plane.serve(self.path, handler)
        instance = Instance(
            instance_id=runtime.instance_id,
            namespace=self.namespace,
            component=self.component,
            endpoint=self.name,
            address=address,
            request_plane=runtime.request_plane_name,
            events=events,
            host=socket.gethostname(),
            pid=os.getpid(),
        )
        served = Served(self, instance)
        runtime.adopt(served)
        await served.join()
        return served

    async def serve_endpoint(
        self,
        handler: Callable[..., Any],
        graceful_shutdown: bool = True,
        metrics_labels: Sequence[tuple[str, str]] | None = None,
        health_check_payload: Mapping[str, Any] | None = None,
    ) -> None:
        """Serve ``handler(request[, context])``, an async generator function (a coroutine function gives a single item).

        Returns once the endpoint has left: by :meth:`DistributedRuntime.shutdown` or because this call was cancelled.
        With ``graceful_shutdown`` running requests are finished first, without it they are dropped, so that clients move them.
        ``metrics_labels`` and ``health_check_payload`` are kept on the :class:`Served`.
        """
        generator = GeneratorHandler(handler, self.path)
        served = await self.serve(generator)
        served.graceful = graceful_shutdown
        served.metrics_labels = tuple(metrics_labels or ())
        served.health_check_payload = health_check_payload
        try:
            await served.closed()
        finally:
            await served.close()
            await generator.close()

    async def client(self) -> Client:
        """A client that knows who serves at this moment."""
        await self.runtime.start()
        client = Client(self, self.runtime.request_plane)
        self.runtime.clients.add(client)
        return await client.synced()


class Served:
    """An endpoint that this process serves."""

    def __init__(self, endpoint: Endpoint, instance: Instance) -> None:
        self.endpoint = endpoint
        self.instance = instance
        self.graceful = True
        self.metrics_labels: tuple[tuple[str, str], ...] = ()
        self.health_check_payload: Mapping[str, Any] | None = None
        self._key = f"instances/{endpoint.namespace}/{endpoint.component}/{endpoint.name}/{instance.instance_id:x}"
        self._idle: asyncio.Task[None] | None = None
        self._closed = asyncio.Event()

    async def join(self) -> None:
        """Appear in discovery."""
        await self.endpoint.runtime.discovery.put(self._key, msgspec.json.encode(self.instance))

    async def leave(self) -> None:
        """Leave discovery and refuse new requests; running ones go on."""
        if self._idle is None:
            runtime = self.endpoint.runtime
            # The plane first, within this turn: no request slips in while the store is slow.
            self._idle = asyncio.ensure_future(_awaited(runtime.request_plane.unserve(self.endpoint.path)))
            try:
                await runtime.discovery.delete(self._key)
            except Exception as error:  # noqa: BLE001  # a store that is down must not keep this process from finishing
                _log.warning("%s could not be deleted from discovery, its lease will lapse: %s", self._key, error)

    async def close(self, grace: float | None = None) -> None:
        """Leave, wait for running requests (``grace`` seconds, ``None``: as long as they take; not at all unless graceful)."""
        await self.leave()
        if self._idle is not None and not self._idle.done():
            if self.graceful:
                await asyncio.wait((self._idle,), timeout=grace)
            self._idle.cancel()
        self.endpoint.runtime.release(self)
        self._closed.set()

    async def closed(self) -> None:
        """Wait until :meth:`close` has done its work."""
        await self._closed.wait()


async def _awaited(awaitable: Any) -> None:
    await awaitable
