"""The runtime of one process: its discovery store, its planes, what it serves."""

from __future__ import annotations

import asyncio
import logging
import secrets
import shutil
import tempfile
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import msgspec

from dynamo_core.contracts.discovery import Discovery
from dynamo_core.contracts.planes import EventPlane, RequestPlane
from dynamo_core.errors import StartupError
from dynamo_core.runtime.canary import CanarySettings
from dynamo_core.runtime.client import Client
from dynamo_core.runtime.component import Endpoint, Namespace
from dynamo_core.runtime.handler import PayloadAdapter
from dynamo_core.runtime.metrics import RuntimeMetrics
from dynamo_core.runtime.served import Served
from dynamo_core.runtime.stores import StoreState, outage_gauge, state_of
from dynamo_core.specs import PlaneContext

if TYPE_CHECKING:
    from dynamo_core.plugins import Compiled, Provider
    from dynamo_core.runtime.system import EngineRoute, SystemServer

__all__ = ["DistributedRuntime"]

_log = logging.getLogger(__name__)


class DistributedRuntime:
    """Discovery, request plane and event plane of a process.

    Each is named (a provider among ``compiled``, else the plugin of that name is activated) or given as an object, which is how
    several runtimes of one process share a store or a hub. The constructor does no I/O: the first of
    :meth:`start`, :meth:`Endpoint.serve` and :meth:`Endpoint.client` starts everything. ``run_dir`` is a private folder for
    sockets, made and removed here if not given. ``loop`` or ``event_loop``, a boolean ``request_plane``, ``enable_nats`` and
    ``response_plane`` are accepted for code written for Dynamo and mean nothing. ``blocking_threads`` run handlers that are plain
    functions. ``system`` is the host and port of a status server (:mod:`dynamo_core.runtime.system`); without it there is none.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop | None = None,
        discovery_backend: str | Discovery = "file",
        request_plane: str | bool | RequestPlane = "tcp",
        enable_nats: bool | None = None,
        *,
        event_loop: asyncio.AbstractEventLoop | None = None,
        response_plane: str | None = None,
        event_plane: str | EventPlane = "request-plane",
        namespace: str = "dynamo",
        run_dir: str | None = None,
        compiled: Compiled | None = None,
        file_kv: str | None = None,
        grace: float = 30.0,
        canary: CanarySettings | None = None,
        blocking_threads: int = 16,
        system: tuple[str, int] | None = None,
    ) -> None:
        del loop, event_loop, enable_nats, response_plane
        self.instance_id = secrets.randbelow((1 << 53) - 1) + 1
        self.default_namespace = namespace
        self.grace = grace
        """Seconds that running requests get to finish when the runtime shuts down."""
        named = "tcp" if isinstance(request_plane, bool) else request_plane
        self.request_plane_name = named if isinstance(named, str) else type(named).__name__
        self.discovery: Discovery
        self.request_plane: RequestPlane
        self.event_plane: EventPlane
        self.clients: set[Client] = set()
        """Closed with the runtime, unless they were before."""
        self.metrics = RuntimeMetrics(lambda: [outage_gauge("dynamo_component", self.stores())])
        """Of the endpoints that this process serves with generators and functions."""
        self.canary = canary or CanarySettings()
        self.adapters: dict[str, PayloadAdapter] = {}
        """By endpoint: between what travels and what its handler sees. Kept by layers above that know more of a request."""
        self.attached: dict[str, Any] = {}
        """What layers above keep for the life of this runtime, under their modules' names."""
        self.engine_routes: dict[str, EngineRoute] = {}
        """By name: what ``/engine/NAME`` of the status server does."""
        self.scrapes: list[Callable[[], Awaitable[bytes]]] = []
        """Further Prometheus text for the status server."""
        self.healthy = True
        """False after ``set_health_status(False)``."""
        self.system: SystemServer | None = None
        """The status server, once it was started."""
        self._system_address = system
        self._blocking_threads = blocking_threads
        self._threads: ThreadPoolExecutor | None = None
        self._on_shutdown: list[Callable[[], Awaitable[None]]] = []
        self._choices = (discovery_backend, named, event_plane)
        self._compiled = compiled
        self._file_kv = file_kv
        self._run_dir = run_dir
        self._own_run_dir: str | None = None
        self._served: list[Served] = []
        self._telling: set[asyncio.Task[None]] = set()
        self._starting: asyncio.Task[None] | None = None
        self._stopping: asyncio.Task[None] | None = None

    # --- addresses -----------------------------------------------------------------------------------------------------------

    def endpoint(self, path: str) -> Endpoint:
        """``ns.comp.ep`` or ``dyn://ns.comp.ep``."""
        return Endpoint(self, path)

    def namespace(self, name: str) -> Namespace:
        return Namespace(self, name)

    # --- life ----------------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Connect discovery and make the planes. Calling it again waits for the first. Raises StartupError."""
        if self._starting is None:
            self._starting = asyncio.create_task(self._start())
        await asyncio.shield(self._starting)

    def shutdown(self) -> asyncio.Task[None]:
        """Leave discovery, finish running requests within the grace time, close everything. Awaiting it is optional."""
        if self._stopping is None:
            self._stopping = asyncio.create_task(self._stop())
        return self._stopping

    @property
    def stopping(self) -> bool:
        """Since the call of :meth:`shutdown`."""
        return self._stopping is not None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.shutdown()

    def on_shutdown(self, callback: Callable[[], Awaitable[None]]) -> None:
        """Await ``callback()`` when the runtime shuts down, after its endpoints have left and before its planes close."""
        self._on_shutdown.append(callback)

    def served(self, path: str) -> Served | None:
        """What this process serves as ``ns.comp.ep``."""
        return next((served for served in self._served if served.endpoint.path == path), None)

    async def sleep(self) -> None:
        """Leave discovery with every endpoint and go on serving what comes all the same, until :meth:`wake`."""
        await asyncio.gather(*(served.suspend("asleep") for served in self._served))

    async def wake(self) -> None:
        await asyncio.gather(*(served.resume("asleep") for served in self._served))

    def set_health_status(self, ready: bool) -> asyncio.Task[None]:
        """Tell routers whether to choose this process: an unhealthy one is out of discovery until it says otherwise. Awaiting it
        is optional."""
        self.healthy = ready
        task = asyncio.create_task(self._tell_health())
        self._telling.add(task)
        task.add_done_callback(self._telling.discard)
        return task

    async def _tell_health(self) -> None:
        for served in tuple(self._served):
            await (served.resume("unhealthy") if self.healthy else served.suspend("unhealthy"))

    def register_engine_route(self, route_name: str, callback: EngineRoute) -> None:
        """Have ``/engine/NAME`` of the status server answer with what ``await callback(body)`` gives; both are JSON objects.
        Without ``DYN_SYSTEM_PORT`` nobody can ask."""
        self.engine_routes[route_name.strip("/")] = callback

    def endpoints_served(self) -> tuple[Served, ...]:
        """What this process serves, draining endpoints among them."""
        return tuple(self._served)

    def stores(self) -> dict[str, StoreState]:
        """``discovery``, ``request_plane``, ``event_plane``: whether the servers behind them can be reached."""
        names = ("discovery", "request_plane", "event_plane")
        found = {name: getattr(self, name, None) for name in names}
        return {
            name: state_of(choice if isinstance(choice, str) else type(choice).__name__, found[name])
            for name, choice in zip(names, self._choices, strict=True)
        }

    @property
    def threads(self) -> ThreadPoolExecutor:
        """For handlers that block."""
        if self._threads is None:
            self._threads = ThreadPoolExecutor(self._blocking_threads, "handler")
        return self._threads

    def adopt(self, served: Served) -> None:
        if not self.healthy:
            served.withhold("unhealthy")
        self._served.append(served)

    def release(self, served: Served) -> None:
        if served in self._served:
            self._served.remove(served)

    async def _start(self) -> None:
        if self._run_dir is None:
            self._run_dir = self._own_run_dir = await asyncio.to_thread(tempfile.mkdtemp, prefix="dynamo-")
        else:
            await asyncio.to_thread(_make_private, self._run_dir)
        context = PlaneContext(namespace=self.default_namespace, run_dir=self._run_dir, instance_id=self.instance_id)
        try:
            await self._connect(context)
        except BaseException:
            await self._close_parts()
            raise

    async def _connect(self, context: PlaneContext) -> None:
        discovery, request_plane, event_plane = self._choices
        self.discovery = self._made("discovery", discovery, context)
        self.request_plane = self._made("request_planes", request_plane, context)
        context = msgspec.structs.replace(context, request_plane=self.request_plane)
        self.event_plane = self._made("event_planes", event_plane, context)
        if self._system_address is not None:
            from dynamo_core.runtime.system import SystemServer

            self.system = SystemServer(self, *self._system_address)
            await self.system.start()
        await self.discovery.start()
        await self.event_plane.start()

    def _made(self, kind: str, choice: Any, context: PlaneContext) -> Any:
        if not isinstance(choice, str):
            return choice
        provider = self._provider(kind, choice)
        config = provider.config
        if kind == "discovery" and choice == "file" and self._file_kv is not None:
            config = msgspec.structs.replace(config, path=self._file_kv)
        factory: Callable[[Any, PlaneContext], Any] = provider.spec.factory
        return factory(config, context)

    def _provider(self, kind: str, name: str) -> Provider:
        from dynamo_core.plugins import activate

        compiled = self._compiled
        if compiled is None or (name not in getattr(compiled, kind) and name not in compiled.blocked):
            compiled = activate((name,), blocked=() if compiled is None else compiled.blocked)
        if kind == "discovery":
            return compiled.discovery_store(name)
        return compiled.request_plane(name) if kind == "request_planes" else compiled.event_plane(name)

    async def _stop(self) -> None:
        if self._starting is None:
            return
        await asyncio.gather(self._starting, return_exceptions=True)
        served = tuple(self._served)
        await asyncio.gather(*(one.leave() for one in served))
        await asyncio.gather(*(one.close(self.grace) for one in served))
        for callback in reversed(self._on_shutdown):
            try:
                await callback()
            except Exception:  # noqa: BLE001  # the others must still be closed
                _log.exception("a callback of the shutdown failed")
        await asyncio.gather(*(client.close() for client in tuple(self.clients)))
        await self._close_parts()
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)

    async def _close_parts(self) -> None:
        for part in (getattr(self, name, None) for name in ("event_plane", "request_plane", "discovery", "system")):
            if part is not None:
                try:
                    await part.close()
                except Exception:  # noqa: BLE001  # the others must still be closed
                    _log.exception("closing %s failed", type(part).__name__)
        if self._own_run_dir is not None:
            await asyncio.to_thread(shutil.rmtree, self._own_run_dir, ignore_errors=True)


def _make_private(path: str) -> None:
    try:
        Path(path).mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StartupError(f"the run folder {path} cannot be made ({error.strerror}): set DYN_RUN_DIR to another") from None
