"""The parts of an address: ``dyn://namespace.component.endpoint``."""

from __future__ import annotations

import inspect
import os
import re
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dynamo_core.contracts.discovery import Instance
from dynamo_core.contracts.planes import RequestHandler
from dynamo_core.errors import ConfigError, StartupError
from dynamo_core.runtime.bidirectional import BidirectionalHandler, input_endpoint
from dynamo_core.runtime.canary import Canary, CanarySettings, Pulse
from dynamo_core.runtime.client import Client
from dynamo_core.runtime.handler import GeneratorHandler
from dynamo_core.runtime.metrics import EndpointMetrics, RuntimeMetrics
from dynamo_core.runtime.served import Served

if TYPE_CHECKING:
    from dynamo_core.runtime.distributed import DistributedRuntime

__all__ = ["Component", "Endpoint", "Namespace", "Served", "parse_endpoint"]

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

    async def serve(
        self,
        handler: RequestHandler,
        *,
        events: bool = False,
        health_check_payload: Any = None,
        canary: CanarySettings | None = None,
    ) -> Served:
        """Serve with a handler that writes into a sink. ``events``: the instance publishes events, too.

        Listens first, then appears in discovery. With a payload the endpoint has to answer canary requests when it is idle;
        ``canary`` says how, the runtime's own settings if it is not given.
        """
        runtime = self.runtime
        await runtime.start()
        earlier = runtime.served(self.path)
        if earlier is not None and not earlier.left:
            raise ConfigError(
                f"this process serves {self.path} already, as instance {runtime.instance_id:x}: choose another name"
            )
        settings = canary or runtime.canary
        pulse = Pulse() if health_check_payload is not None and settings.enabled else None
        address = await runtime.request_plane.serve(self.path, handler if pulse is None else pulse.watching(handler))
        served = Served(self, self._instance(address, await runtime.event_plane.address() if events else ""))
        served.health_check_payload = health_check_payload
        runtime.adopt(served)
        if runtime.stopping:
            await served.close(0)
            return served
        try:
            await served.join()
        except StartupError:
            await served.close(0)
            raise
        if pulse is not None and not served.left:
            served.canary = Canary(served, health_check_payload, pulse, settings)
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
        ``metrics_labels`` stand on the endpoint's series (``runtime.metrics``). ``health_check_payload`` is a request that the
        endpoint must be able to answer at any time; see :class:`~dynamo_core.runtime.canary.Canary`.
        """
        generator = self._generator(handler, metrics_labels)
        served = await self.serve(generator, events=True, health_check_payload=health_check_payload)
        await self._until_closed(served, generator, graceful_shutdown, metrics_labels)

    async def serve_unary_endpoint(
        self,
        handler: Callable[..., Any],
        graceful_shutdown: bool = True,
        metrics_labels: Sequence[tuple[str, str]] | None = None,
        health_check_payload: Mapping[str, Any] | None = None,
    ) -> None:
        """As :meth:`serve_endpoint`, for a coroutine function with exactly one response; call it by
        :class:`~dynamo_core.runtime.unary.UnaryClient`."""
        if inspect.isasyncgenfunction(handler) or inspect.isgeneratorfunction(handler):
            raise ConfigError(f"the handler of {self.path} yields: serve it by serve_endpoint, or return the one response")
        await self.serve_endpoint(handler, graceful_shutdown, metrics_labels, health_check_payload)

    async def serve_bidirectional_endpoint(
        self,
        handler: Callable[..., Any],
        graceful_shutdown: bool = True,
        metrics_labels: Sequence[tuple[str, str]] | None = None,
    ) -> None:
        """As :meth:`serve_endpoint`, for ``handler(requests[, context])``, whose ``requests`` are an async iterator that goes
        on while responses leave. Call it by ``Client.bidirectional``."""
        generator = self._generator(handler, metrics_labels)
        both = BidirectionalHandler(generator)
        inputs = f"{self.namespace}.{self.component}.{input_endpoint(self.name)}"
        await self.runtime.start()
        plane = self.runtime.request_plane
        await plane.serve(inputs, both.take_input)
        served = await self.serve(both.handle, events=True)
        try:
            await self._until_closed(served, generator, graceful_shutdown, metrics_labels)
        finally:
            both.close()
            await plane.unserve(inputs)

    async def unregister_endpoint_instance(self) -> None:
        """Leave discovery, so that routers choose others; what comes all the same is served. For a worker that sleeps."""
        await self._served().suspend("unregistered")

    async def register_endpoint_instance(self) -> None:
        """Appear in discovery again."""
        await self._served().resume("unregistered")

    def connection_id(self) -> int:
        """The id of this process as an instance."""
        return self.runtime.instance_id

    @property
    def metrics(self) -> RuntimeMetrics:
        """Of the whole process; for ``register_prometheus_expfmt_callback``."""
        return self.runtime.metrics

    async def client(self, router_mode: Any = None) -> Client:
        """A client that knows who serves at this moment. ``router_mode`` is what ``Client.generate`` does: round-robin unless it
        is ``"random"`` (or an enum's member of that name)."""
        await self.runtime.start()
        client = Client(self, self.runtime.request_plane, mode=_mode(router_mode))
        self.runtime.clients.add(client)
        try:
            return await client.synced()
        except BaseException:
            await client.close()
            raise

    def _instance(self, address: str, events: str) -> Instance:
        return Instance(
            instance_id=self.runtime.instance_id,
            namespace=self.namespace,
            component=self.component,
            endpoint=self.name,
            address=address,
            request_plane=self.runtime.request_plane_name,
            events=events,
            host=socket.gethostname(),
            pid=os.getpid(),
        )

    def _served(self) -> Served:
        served = self.runtime.served(self.path)
        if served is None:
            raise ConfigError(f"this process does not serve {self.path}: register and unregister it while it does")
        return served

    def _generator(self, handler: Callable[..., Any], labels: Sequence[tuple[str, str]] | None) -> GeneratorHandler:
        runtime = self.runtime
        metrics = EndpointMetrics(self.path, tuple(labels or ()))
        runtime.metrics.add(metrics)
        return GeneratorHandler(
            handler,
            self.path,
            metrics=metrics,
            adapter=lambda: runtime.adapters.get(self.path),
            threads=lambda: runtime.threads,
        )

    async def _until_closed(
        self,
        served: Served,
        generator: GeneratorHandler,
        graceful: bool,
        labels: Sequence[tuple[str, str]] | None,
    ) -> None:
        served.graceful = graceful
        served.metrics_labels = tuple(labels or ())
        try:
            await served.closed()
        finally:
            await served.close()
            await generator.close()


def _mode(router_mode: Any) -> str:
    name = str(getattr(router_mode, "value", router_mode) or "round-robin").lower().replace("_", "-")
    mode = {"roundrobin": "round-robin"}.get(name, name)
    if mode not in {"round-robin", "random"}:
        raise ConfigError(f"a client cannot route by {mode}: use round-robin, random or direct(), or dynamo_core.llm.KvRouter")
    return mode
