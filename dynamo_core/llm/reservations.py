"""Requests that a frontend runs and this process routes: from the frontend's question to its word that the request is over."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from dynamo_core.contracts import ClientStream, Context, EngineRequest, Outcome, ResponseSink, Route, RouteRequest, StreamReceiver
from dynamo_core.contracts.placement import Placement, PlaceRequest, Progress
from dynamo_core.errors import DynamoError, NoInstances, ProtocolError
from dynamo_core.runtime import Client
from dynamo_core.serving.dispatch import Dispatcher
from dynamo_core.serving.sequence import Leg, Sequence

__all__ = ["Reservations", "ReservingClient", "placement_of", "route_request"]


class ReservingClient:
    """Workers' client for a dispatcher that also places what others send: such a leg opens no stream."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def open(self, instance_id: int, request: Any, context: Context, receiver: StreamReceiver) -> ClientStream:
        if isinstance(receiver, Leg) and isinstance(receiver.sequence.receiver, _Reservation):
            return receiver.sequence.receiver
        return self._client.open(instance_id, request, context, receiver)

    def open_beside(
        self, instance_id: int, endpoint: str, request: Any, context: Context, receiver: StreamReceiver
    ) -> ClientStream:
        return self._client.open_beside(instance_id, endpoint, request, context, receiver)


class Reservations:
    """Handlers of the endpoints ``place`` and ``progress``. ``dispatcher`` gives ``None`` as long as nobody serves."""

    def __init__(self, dispatcher: Callable[[], Dispatcher | None], clock: Callable[[], float]) -> None:
        self._dispatcher = dispatcher
        self._clock = clock
        self._running: dict[tuple[str, int], _Reservation] = {}
        """By frontend and its number for the request."""

    def __len__(self) -> int:
        return len(self._running)

    def place(self, request: Any, context: Context, sink: ResponseSink) -> None:
        dispatcher = self._dispatcher()
        if dispatcher is None:
            raise NoInstances("The router has no workers yet.", retry_after=1)
        route = route_request(request, self._clock())
        key = (str(context.metadata.get("frontend", "")), int(request["number"]))
        reservation = _Reservation(sink, lambda: self._running.pop(key, None))
        self._running[key] = reservation
        reservation.sequence = dispatcher.submit(
            route,
            EngineRequest(id=route.id, token_ids=[]),
            context,
            reservation,
        )
        context.on_cancel(lambda _: reservation.end("cancelled"))

    def progress(self, request: Any, context: Context, sink: ResponseSink) -> None:
        try:
            news = msgspec.convert(request, Progress)
        except msgspec.ValidationError as error:
            raise ProtocolError(f"That is no progress of requests: {error}.") from None
        frontend = str(context.metadata.get("frontend", ""))
        for number in news.answered:
            reservation = self._running.get((frontend, number))
            if reservation is not None:
                reservation.answered()
        for number, outcome in news.ended:
            reservation = self._running.get((frontend, number))
            if reservation is not None:
                reservation.end(outcome)
        sink.end()


def route_request(request: Any, now: float) -> RouteRequest:
    """Raises :class:`ProtocolError` for what is no :class:`PlaceRequest`."""
    try:
        asked = msgspec.convert(request, PlaceRequest)
    except msgspec.ValidationError as error:
        raise ProtocolError(f"That is no request to be placed: {error}.") from None
    return RouteRequest(
        id=asked.id,
        token_ids=asked.token_ids,
        max_tokens=asked.max_tokens,
        arrival=now,
        excluded=frozenset(asked.excluded),
        pinned=asked.pinned,
        priority=asked.priority,
        lora=asked.lora,
        cache_salt=asked.cache_salt,
        session=asked.session,
        headers=asked.headers,
        hints=asked.hints,
    )


def placement_of(route: Route) -> Placement:
    return Placement(worker_id=route.worker_id, dp_rank=route.dp_rank, overlap_blocks=route.overlap_blocks, explain=route.explain)


class _Reservation:
    """One of them: the receiver of its sequence, and the stream of its leg."""

    sequence: Sequence

    def __init__(self, sink: ResponseSink, forget: Callable[[], object]) -> None:
        self.generated: list[int] = []
        self.on_items: Callable[[list[Any]], None] = _nothing
        self._sink = sink
        self._forget = forget
        self._over = False

    # --- as a receiver -------------------------------------------------------------------------------------------------------

    def on_routed(self, worker_id: int) -> None:
        del worker_id
        route = self.sequence.placed
        if route is not None:
            self._sink.item(msgspec.to_builtins(placement_of(route)))

    def on_error(self, error: DynamoError) -> None:
        self._close()
        self._sink.error(error)

    # --- as a stream ---------------------------------------------------------------------------------------------------------

    def cancel(self, *, kill: bool) -> None:
        """The frontend has the stream that matters."""

    def pause(self) -> None: ...

    def resume(self) -> None: ...

    # --- as the frontend tells -----------------------------------------------------------------------------------------------

    def answered(self) -> None:
        leg = self.sequence.leg
        if leg is not None and not leg.answered:
            leg.on_items([])

    def end(self, outcome: Outcome) -> None:
        if self._over:
            return
        self._close()
        if outcome == "completed":
            self.sequence.complete()
        else:
            self.sequence.cut(outcome)
        self._sink.end()

    def _close(self) -> None:
        self._over = True
        self._forget()


def _nothing(_: list[Any]) -> None:
    """A reservation gets no tokens."""
