"""Router ``remote``: asks a router that runs as a process of its own (``dynamo router``), so that frontends share its view.

Which one: ``[plugins.remote] component``, else ``DYN_ROUTER_COMPONENT``, else ``router`` in the frontend's namespace. As long as
nobody serves there, requests go to the worker with the fewest.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from dynamo_core.contracts import (
    ClientStream,
    Context,
    Decision,
    Hold,
    Outcome,
    Reject,
    Route,
    RouterContext,
    RouteRequest,
    WorkerView,
)
from dynamo_core.contracts.placement import Placement, PlaceRequest, Progress
from dynamo_core.errors import CannotConnect, Disconnected, DynamoError, EngineShutdown, NoInstances
from dynamo_core.hookspecs import hookimpl
from dynamo_core.specs import RouterSpec

__all__ = ["Remote", "RemoteConfig", "dynamo_config", "dynamo_routers"]

_log = logging.getLogger(__name__)

_ABSENT = (NoInstances, CannotConnect, Disconnected, EngineShutdown)
"""Errors that mean that the router is not there, or has nobody to choose from."""
_UNKNOWN_SECONDS = 0.1
"""Pause before a worker that only the router knows is looked for again."""
_UNKNOWN_LOOKS = 10
_SECRETS = frozenset({"authorization", "cookie", "proxy-authorization", "x-api-key"})


class RemoteConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    component: str | None = None
    """Where the router serves: ``namespace.component``."""


class Remote:
    """A request that waits for the router's answer is held meanwhile. Runs on the frontend's event loop and needs its runtime."""

    def __init__(self, config: RemoteConfig | None, context: RouterContext) -> None:
        component = (config or RemoteConfig()).component or os.environ.get("DYN_ROUTER_COMPONENT")
        self._runtime = context.runtime
        self._component = component or f"{getattr(self._runtime, 'default_namespace', 'dynamo')}.router"
        self._wake = context.wake
        self._asked: dict[RouteRequest, _Ask] = {}
        self._placed: dict[RouteRequest, _Ask] = {}
        self._count = 0
        self._clients: _Clients | None = None
        self._connecting: asyncio.Task[_Clients] | None = None
        self._answered: list[int] = []
        self._ended: list[tuple[int, Outcome]] = []
        self._telling = False
        self._alone = False

    def select(self, requests: Sequence[RouteRequest], workers: Mapping[int, WorkerView]) -> Sequence[Decision]:
        return [self._place(request, workers) for request in requests]

    async def query(self, request: RouteRequest, workers: Mapping[int, WorkerView]) -> Decision:
        try:
            client = (self._clients or await self._connect()).query
            stream = client.direct(
                msgspec.to_builtins(_asked(0, request)), min(client.instance_ids(), default=0), False, self._context()
            )
            placement = msgspec.convert(await anext(stream), Placement)
        except DynamoError as error:
            return self._alone_route(error, request, workers) if isinstance(error, _ABSENT) else Reject(error)
        return Route(placement.worker_id, placement.overlap_blocks, placement.explain, placement.dp_rank)

    def first_token(self, request: RouteRequest, worker_id: int) -> None:
        del worker_id
        ask = self._placed.get(request)
        if ask is not None:
            self._answered.append(ask.number)
            self._tell_soon()

    def finished(self, request: RouteRequest, worker_id: int, outcome: Outcome) -> None:
        del worker_id
        ask = self._placed.pop(request, None)
        if ask is not None:
            self._end(ask, outcome)

    def dropped(self, request: RouteRequest) -> None:
        ask = self._asked.pop(request, None)
        if ask is not None:
            self._end(ask, "cancelled")

    async def close(self) -> None:
        if self._connecting is not None:
            self._connecting.cancel()
            await asyncio.gather(self._connecting, return_exceptions=True)
        for client in self._clients or ():
            await client.close()

    # --- one request ---------------------------------------------------------------------------------------------------------

    def _place(self, request: RouteRequest, workers: Mapping[int, WorkerView]) -> Decision:
        ask = self._asked.get(request)
        if ask is None:
            ask = self._ask(request)
            if ask is None:
                return Hold(reason=f"connecting to {self._component}")
        if ask.error is not None:
            del self._asked[request]
            if isinstance(ask.error, _ABSENT):
                return self._alone_route(ask.error, request, workers)
            return Reject(ask.error)
        placement = ask.placement
        if placement is None:
            return Hold(reason=f"{self._component} has not decided yet")
        if placement.worker_id not in workers:
            return self._unknown(ask, request, placement.worker_id)
        del self._asked[request]
        self._placed[request] = ask
        if self._alone:
            self._alone = False
            _log.info("%s decides again", self._component)
        return Route(placement.worker_id, placement.overlap_blocks, placement.explain, placement.dp_rank)

    def _ask(self, request: RouteRequest, excluded: frozenset[int] = frozenset()) -> _Ask | None:
        if self._clients is None:
            if self._connecting is None:
                self._connecting = asyncio.get_running_loop().create_task(self._connect())
            return None
        self._count += 1
        ask = self._asked[request] = _Ask(self._count, self._wake)
        client = self._clients.place
        ids = client.instance_ids()
        if not ids:
            ask.error = NoInstances(f"nobody serves {self._component}")
            return ask
        asked = _asked(ask.number, request, excluded)
        try:
            # All frontends ask the same one, as long as it is there.
            ask.router = min(ids)
            ask.stream = client.open(ask.router, msgspec.to_builtins(asked), self._context(), ask)
        except DynamoError as error:
            ask.error = error
        return ask

    def _unknown(self, ask: _Ask, request: RouteRequest, worker_id: int) -> Decision:
        """The router knows of a worker that is not known here yet, or is left out here."""
        ask.looks += 1
        if ask.looks >= _UNKNOWN_LOOKS:
            self._end(ask, "cancelled")
            ask.unwanted |= {worker_id}
            again = self._ask(request, ask.unwanted)
            if again is not None:
                again.unwanted = ask.unwanted
        return Hold(_UNKNOWN_SECONDS, f"worker {worker_id:x} is not to be had")

    def _alone_route(self, error: DynamoError, request: RouteRequest, workers: Mapping[int, WorkerView]) -> Decision:
        if not self._alone:
            self._alone = True
            _log.warning("%s cannot be asked (%s); requests go to the least loaded worker", self._component, error.message)
        fit = [worker for worker in workers.values() if worker.id not in request.excluded]
        if request.pinned is not None:
            fit = [worker for worker in fit if worker.id == request.pinned] or fit
        if not fit:
            return Hold(reason="no worker is left for this request")
        return Route(min(fit, key=lambda worker: (worker.running, worker.id)).id, explain={"router": "least loaded"})

    # --- what the router is told ---------------------------------------------------------------------------------------------

    def _end(self, ask: _Ask, outcome: Outcome) -> None:
        if not ask.over:
            self._ended.append((ask.number, outcome))
            self._tell_soon()

    def _tell_soon(self) -> None:
        if not self._telling:
            self._telling = True
            asyncio.get_running_loop().call_soon(self._tell)

    def _tell(self) -> None:
        self._telling = False
        news = Progress(answered=tuple(self._answered), ended=tuple(self._ended))
        self._answered, self._ended = [], []
        if self._clients is None:
            return
        client = self._clients.progress
        for router in client.instance_ids():  # each knows which of these are its own
            try:
                client.open(router, msgspec.to_builtins(news), self._context(), _Nobody())
            except DynamoError as error:
                _log.debug("%s was not told: %s", self._component, error)

    def _context(self) -> Context:
        return Context(metadata={"frontend": f"{self._runtime.instance_id:x}"})

    async def _connect(self) -> _Clients:
        runtime = self._runtime
        opened = [await runtime.endpoint(f"{self._component}.{name}").client() for name in _Clients._fields]
        self._clients = _Clients(*opened)
        self._wake()
        return self._clients


class _Clients(NamedTuple):
    """Of the router's endpoints."""

    place: Any
    progress: Any
    query: Any


def _asked(number: int, request: RouteRequest, excluded: frozenset[int] = frozenset()) -> PlaceRequest:
    return PlaceRequest(
        number=number,
        id=request.id,
        token_ids=list(request.token_ids),
        max_tokens=request.max_tokens,
        excluded=tuple(request.excluded | excluded),
        pinned=request.pinned,
        priority=request.priority,
        lora=request.lora,
        cache_salt=request.cache_salt,
        session=request.session,
        headers={name: value for name, value in request.headers.items() if name not in _SECRETS},
        hints=request.hints,
    )


class _Ask:
    """One question: the receiver of its stream."""

    def __init__(self, number: int, wake: Any) -> None:
        self.number = number
        self.router = 0
        self.placement: Placement | None = None
        self.error: DynamoError | None = None
        self.stream: ClientStream | None = None
        self.over = False
        """The router has forgotten it."""
        self.looks = 0
        self.unwanted: frozenset[int] = frozenset()
        self._wake = wake

    def on_items(self, items: list[Any]) -> None:
        try:
            self.placement = msgspec.convert(items[0], Placement)
        except msgspec.ValidationError as error:
            self.error = NoInstances(f"the router answered what is no placement: {error}")
        self._wake()

    def on_end(self) -> None:
        self.on_error(NoInstances("the router ended the question"))

    def on_error(self, error: DynamoError) -> None:
        """After the answer it changes nothing: the request runs where it is."""
        self.over = True
        if self.placement is None and self.error is None:
            self.error = error
            self._wake()


class _Nobody:
    def on_items(self, items: list[Any]) -> None: ...

    def on_end(self) -> None: ...

    def on_error(self, error: DynamoError) -> None: ...


@hookimpl
def dynamo_config() -> type[msgspec.Struct]:
    return RemoteConfig


@hookimpl
def dynamo_routers() -> Iterable[RouterSpec]:
    yield RouterSpec(name="remote", factory=Remote, description="As a `dynamo router` decides, which several frontends share.")
