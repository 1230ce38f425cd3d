"""What frontends tell each other of the requests they route, so that each of their routers sees the whole load.

Every frontend serves ``namespace.frontend.routed`` and finds the others there. What it routes, what got its first token and what
ended is published once a turn of the loop, if anybody listens; the endpoint answers with all that runs now, for those who come
late or missed something. A frontend that is gone takes its requests along.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import msgspec

from dynamo_core.contracts import Context, ForeignRequest, Instance, ResponseSink, Route, RouteRequest
from dynamo_core.runtime import Client, DistributedRuntime, Served
from dynamo_core.serving.follower import Follower, Numbered, Source
from dynamo_core.serving.peer_load import ModelLoad, PeerRequests
from dynamo_core.serving.session_affinity import SessionPlace

__all__ = ["ROUTED_TOPIC", "Answered", "Begun", "Ended", "ReplicaSync", "Restart", "RoutedBatch", "Session"]

_log = logging.getLogger(__name__)

ROUTED_TOPIC = "routed"
"""Event topic of :class:`RoutedBatch`."""
_ENDPOINT = "frontend.routed"
_TAIL_SECONDS = 1.0
_MOST_TAIL_SECONDS = 64.0
"""After a batch an empty one follows, so that the loss of the last is noticed, and others after twice as long each: a connection
that breaks loses all that was sent until it stands again."""
_CHUNK = 512
"""Requests an item of the answer."""


class Begun(msgspec.Struct, frozen=True, array_like=True, tag="b"):
    """A request was sent to a worker. ``number`` names it until it has ended."""

    number: int
    model: str
    worker_id: int
    prompt_tokens: int
    overlap_blocks: int = 0
    dp_rank: int | None = None
    note: Any = None
    session: SessionPlace | None = None


class Answered(msgspec.Struct, frozen=True, array_like=True, tag="a"):
    """It gave its first token."""

    number: int


class Ended(msgspec.Struct, frozen=True, array_like=True, tag="e"):
    number: int


class Session(msgspec.Struct, frozen=True, array_like=True, tag="s"):
    """A session that has no request now. Part of the state only."""

    model: str
    place: SessionPlace


class Restart(msgspec.Struct, frozen=True, array_like=True, tag="r"):
    """What follows is all there is."""


_Event: TypeAlias = Begun | Answered | Ended | Session | Restart


class RoutedBatch(msgspec.Struct, frozen=True, array_like=True):
    frontend: int
    """Its instance id."""
    number: int
    """Counts from 0."""
    events: tuple[_Event, ...]


class _Running(NamedTuple):
    model: str
    worker_id: int
    request: RouteRequest
    route: Route
    session: SessionPlace | None


_encode = msgspec.msgpack.Encoder().encode
_decoder = msgspec.msgpack.Decoder(RoutedBatch)


def _decode(payload: Any) -> RoutedBatch | None:
    try:
        return _decoder.decode(payload)
    except (msgspec.MsgspecError, TypeError):
        return None


class ReplicaSync:
    """Both directions, for all models of one frontend. Costs one dictionary entry a request as long as nobody listens."""

    def __init__(self, runtime: DistributedRuntime, namespace: str) -> None:
        self.peers: dict[int, _Peer] = {}
        """The other frontends, by instance id."""
        self._runtime = runtime
        self._endpoint = runtime.endpoint(f"{namespace}.{_ENDPOINT}")
        self._models: dict[str, ModelLoad] = {}
        self._running: dict[int, _Running] = {}
        self._answered: set[int] = set()
        self._listeners: set[int] = set()
        """Those that asked for the state or are in discovery."""
        self._count = 0
        self._number = 0
        self._events: list[_Event] = []
        self._scheduled = False
        self._tail: asyncio.TimerHandle | None = None
        self._tail_seconds = _TAIL_SECONDS
        self._loop = asyncio.get_running_loop()
        self._served: Served | None = None
        self._client: Client | None = None

    async def start(self) -> None:
        self._served = await self._endpoint.serve(self._tell_all, events=True)
        self._client = client = await self._endpoint.client()
        client.on_change(lambda instance: self._met(client, instance), self._left)

    async def close(self) -> None:
        for peer in tuple(self.peers):
            self._left(peer)
        if self._tail is not None:
            self._tail.cancel()
        self._listeners.clear()
        if self._client is not None:
            await self._client.close()
        if self._served is not None:
            await self._served.close(0)

    def join(self, model: str, load: ModelLoad) -> None:
        """From here on ``load`` is told of what others route for the model, beginning with what they have now."""
        self._models[model] = load
        for peer in self.peers.values():
            peer.requests.replay(model, load)

    # --- what this frontend routes -------------------------------------------------------------------------------------------

    def begun(self, model: str, worker_id: int, request: RouteRequest, route: Route, session: SessionPlace | None) -> int:
        """Returns the number for the two calls below."""
        number = self._count = self._count + 1
        running = self._running[number] = _Running(model, worker_id, request, route, session)
        if self._listeners:
            self._publish(_begun(number, running))
        return number

    def answered(self, number: int) -> None:
        self._answered.add(number)
        if self._listeners:
            self._publish(Answered(number))

    def ended(self, number: int) -> None:
        self._answered.discard(number)
        if self._running.pop(number, None) is not None and self._listeners:
            self._publish(Ended(number))

    def _publish(self, event: _Event) -> None:
        self._events.append(event)
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._scheduled = False
        events, self._events = self._events, []
        batch = RoutedBatch(self._runtime.instance_id, self._number, tuple(events))
        self._number += 1
        try:
            self._runtime.event_plane.publish(ROUTED_TOPIC, _encode(batch))
        except (TypeError, ValueError, OverflowError):
            _log.exception("a router's note cannot be sent to other frontends")
        if events and (self._tail is None or self._tail_seconds > _TAIL_SECONDS):
            if self._tail is not None:
                self._tail.cancel()
            self._tail_seconds = _TAIL_SECONDS
            self._tail = self._loop.call_later(_TAIL_SECONDS, self._end_tail)

    def _end_tail(self) -> None:
        self._tail = None
        if not self._listeners:
            return
        if not self._scheduled:
            self._flush()
        if self._tail_seconds < _MOST_TAIL_SECONDS:
            self._tail_seconds *= 2
            self._tail = self._loop.call_later(self._tail_seconds, self._end_tail)

    def _tell_all(self, request: Any, context: Context, sink: ResponseSink) -> None:
        """The handler of the endpoint; ``request`` is the asking frontend's instance id."""
        del context
        if isinstance(request, int):
            self._listeners.add(request)
        if self._events:  # they are in the state, and so must be its number
            self._flush()
        told: list[_Event] = [Restart()]
        told += [_begun(number, running) for number, running in self._running.items()]
        told += [Answered(number) for number in self._answered]
        told += [Session(name, place) for name, load in self._models.items() for place in load.session_places()]
        for start in range(0, len(told), _CHUNK):
            batch = RoutedBatch(self._runtime.instance_id, self._number - 1, tuple(told[start : start + _CHUNK]))
            sink.item(_encode(batch))
        sink.end()

    # --- the others ----------------------------------------------------------------------------------------------------------

    def _met(self, client: Client, instance: Instance) -> None:
        peer_id = instance.instance_id
        if peer_id == self._runtime.instance_id or not instance.events:
            return
        self._left(peer_id)
        try:
            self.peers[peer_id] = _Peer(self._runtime, client, instance, self._models)
        except ValueError as error:
            _log.warning("what frontend %x routes is not known here: %s; give all processes one event plane", peer_id, error)
        else:
            self._listeners.add(peer_id)

    def _left(self, peer_id: int) -> None:
        self._listeners.discard(peer_id)
        peer = self.peers.pop(peer_id, None)
        if peer is not None:
            peer.close()


class _Peer:
    """Another frontend: what it has told, followed without holes."""

    def __init__(self, runtime: DistributedRuntime, client: Client, instance: Instance, models: dict[str, ModelLoad]) -> None:
        self.id = instance.instance_id
        self.requests = PeerRequests(models)
        source = Source(
            f"requests of frontend {self.id:x}",
            number=lambda batch: Numbered(0, batch.number),
            decode=self._decode,
            fetch=lambda receiver: client.open(self.id, runtime.instance_id, Context(), receiver),
        )
        self._follower: Follower[RoutedBatch] = Follower(source, self._apply, lambda _: self.requests.clear())
        self._subscription = runtime.event_plane.subscribe(instance.events, ROUTED_TOPIC, self._on_batch, self._follower.dropped)
        self._follower.begin()

    def close(self) -> None:
        self._subscription.close()
        self._follower.close()
        self.requests.clear()

    def _decode(self, payload: Any) -> RoutedBatch | None:
        batch = _decode(payload)
        return batch if batch is not None and batch.frontend == self.id else None

    def _on_batch(self, payload: bytes) -> None:
        batch = self._decode(payload)
        if batch is not None:
            self._follower.receive(batch)

    def _apply(self, batch: RoutedBatch) -> None:
        requests = self.requests
        for event in batch.events:
            if isinstance(event, Begun):
                requests.begun(event.number, event.model, event.worker_id, _foreign(self.id, event), event.session)
            elif isinstance(event, Answered):
                requests.answered(event.number)
            elif isinstance(event, Ended):
                requests.ended(event.number)
            elif isinstance(event, Session):
                requests.session(event.model, event.place)
            else:
                requests.clear()


def _begun(number: int, running: _Running) -> Begun:
    request, route = running.request, running.route
    note: Callable[[], Any] | None = route.note
    return Begun(
        number,
        running.model,
        running.worker_id,
        len(request.token_ids),
        route.overlap_blocks,
        route.dp_rank,
        None if note is None else _made(note),
        running.session,
    )


def _made(note: Callable[[], Any]) -> Any:
    try:
        return note()
    except Exception:  # noqa: BLE001  # a router's mistake; the others still see the load
        _log.exception("a router's note failed")
        return None


def _foreign(frontend: int, event: Begun) -> ForeignRequest:
    return ForeignRequest(
        id=f"{frontend:x}-{event.number}",
        token_ids=(),
        session=None if event.session is None else event.session.session,
        prompt_tokens=event.prompt_tokens,
        overlap_blocks=event.overlap_blocks,
        dp_rank=event.dp_rank,
        note=event.note,
    )
