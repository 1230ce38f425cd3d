"""One engine request on its way through workers, and its stay on each."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from dynamo_core.contracts import (
    ClientStream,
    Context,
    EngineRequest,
    Outcome,
    Route,
    RouteRequest,
    StreamReceiver,
    WorkerView,
)
from dynamo_core.errors import CannotConnect, DynamoError, EngineError
from dynamo_core.serving.migration import obstacle, remainder, resumed
from dynamo_core.serving.wire import encode_request

if TYPE_CHECKING:
    from dynamo_core.serving.dispatch import Dispatcher

__all__ = ["Leg", "Sequence", "SequenceReceiver", "WorkerClient"]

_log = logging.getLogger(__name__)

Items = list[Any]


class WorkerClient(Protocol):
    """What opens streams to workers: the runtime's client of their endpoint."""

    def open(self, instance_id: int, request: Any, context: Context, receiver: StreamReceiver) -> ClientStream: ...


class SequenceReceiver(Protocol):
    """Where a sequence delivers. All legs deliver to the same receiver, as if they were one stream."""

    generated: list[int]
    """Every token so far. The receiver appends; a migration resumes from here."""

    @property
    def on_items(self) -> Callable[[Items], None]:
        """Looked up again after the first frame of each leg, then called by the request plane without a step between."""
        ...

    def on_routed(self, worker_id: int) -> None:
        """A leg begins."""
        ...

    def on_error(self, error: DynamoError) -> None:
        """No worker can finish this. Nothing follows."""
        ...


def _ignore(_: Items) -> None:
    """Items of a leg that is over."""


class Leg:
    """The stay of a sequence on one worker: what the request plane delivers to."""

    __slots__ = ("_killed", "_stream", "answered", "number", "on_items", "released", "route", "sequence", "worker")

    def __init__(self, sequence: Sequence, worker: WorkerView) -> None:
        self.sequence = sequence
        self.worker = worker
        self.route = sequence.route
        self.number = 0
        """Among those that other frontends are told of."""
        self.released = False
        self.answered = False
        """Something came."""
        self.on_items: Callable[[Items], None] = self._first_items
        self._stream: ClientStream | None = None
        self._killed = False

    def open(self, client: WorkerClient) -> None:
        sequence = self.sequence
        try:
            request = encode_request(sequence.request)
            # pyright takes the attribute on_items for a method.
            self._stream = client.open(self.worker.id, request, sequence.context, self)  # pyright: ignore[reportArgumentType]
        except DynamoError as error:  # the instance left in this very moment
            sequence.leg_ended(self, CannotConnect(error.message))
            return
        except Exception:  # noqa: BLE001  # a request that a plane cannot carry fails alone
            _log.exception("request %s could not be sent to worker %x", sequence.request.id, self.worker.id)
            sequence.leg_ended(self, EngineError("The request could not be sent to a worker."))
            return
        if self._killed:  # by a callback from within open()
            self.kill()

    def over(self) -> None:
        """Deliver nothing more."""
        self.released = True
        self.on_items = _ignore

    def kill(self) -> None:
        self._killed = True
        self.on_items = _ignore
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.cancel(kill=True)

    def pause(self) -> None:
        if self._stream is not None:
            self._stream.pause()

    def resume(self) -> None:
        if self._stream is not None:
            self._stream.resume()

    def on_end(self) -> None:
        self._stream = None
        if not self.released:
            self.sequence.leg_ended(self, EngineError("The worker ended the stream without a finish reason."))

    def on_error(self, error: DynamoError) -> None:
        self._stream = None
        if not self.released:
            self.sequence.leg_ended(self, error)

    def _first_items(self, items: Items) -> None:
        sequence = self.sequence
        router = sequence.dispatcher.router
        self.answered = True
        sequence.dispatcher.breaker.answered(self.worker.id)
        router.tell("first_token", self.route, self.worker.id)
        sequence.dispatcher.sharing.answered(self.number)
        sequence.dispatcher.changed()
        counting = router.has("output_tokens")
        receiver = sequence.receiver
        self.on_items = self._counted_items if counting else receiver.on_items
        self.on_items(items)
        if not (counting or self.released or self._killed):
            self.on_items = receiver.on_items

    def _counted_items(self, items: Items) -> None:
        """For routers that want to know of every token."""
        receiver = self.sequence.receiver
        before = len(receiver.generated)
        receiver.on_items(items)
        count = len(receiver.generated) - before
        if count and not self.released:
            self.sequence.dispatcher.router.tell("output_tokens", self.route, self.worker.id, count)


class Sequence:
    """Made by :meth:`Dispatcher.submit <dynamo_core.serving.dispatch.Dispatcher.submit>`."""

    __slots__ = (
        "_moves",
        "_origin",
        "_paused",
        "closed",
        "context",
        "dispatcher",
        "leg",
        "named",
        "placed",
        "receiver",
        "request",
        "route",
        "setback",
    )

    def __init__(
        self, dispatcher: Dispatcher, route: RouteRequest, request: EngineRequest, context: Context, receiver: SequenceReceiver
    ) -> None:
        self.dispatcher = dispatcher
        self.route = route
        self.request = request
        self.context = context
        self.receiver = receiver
        self.leg: Leg | None = None
        self.placed: Route | None = None
        """The latest decision of the router."""
        self.closed = False
        self.named = route.pinned is not None
        """The client wants this worker and no other."""
        self.setback: DynamoError | None = None
        """What ended the latest leg."""
        self._origin = request
        self._moves = 0
        self._paused = False

    @property
    def waiting(self) -> bool:
        """True while it is on no worker."""
        return self.leg is None and not self.closed

    def complete(self) -> None:
        """The receiver has its finish reason: settle with the router."""
        self._close("completed")

    def cut(self, outcome: Outcome) -> None:
        """Take no more and free the engine's sequence at once. After ``complete`` or a first ``cut`` it changes nothing."""
        leg = self.leg
        self._close(outcome)
        if leg is not None:
            leg.kill()

    def fail(self, error: DynamoError) -> None:
        if not self.closed:
            receiver = self.receiver
            self._close("cancelled" if self.context.is_stopped() else "failed")
            receiver.on_error(error)

    def pause(self) -> None:
        self._paused = True
        if self.leg is not None:
            self.leg.pause()

    def resume(self) -> None:
        self._paused = False
        if self.leg is not None:
            self.leg.resume()

    def begin(self, leg: Leg, client: WorkerClient) -> None:
        """The router chose a worker. Called by the dispatcher."""
        self.leg = leg
        self.receiver.on_routed(leg.worker.id)
        leg.open(client)
        if self._paused and self.leg is leg:
            leg.pause()

    def leg_ended(self, leg: Leg, error: DynamoError) -> None:
        """The leg failed, or ended without a finish reason. Called by the leg."""
        if self.leg is not leg:
            return
        self.setback = error
        if not leg.answered and not self.context.is_stopped():
            self.dispatcher.breaker.failed(leg.worker.id, error)
        reason = self._why_not_continue(leg, error)
        if reason is not None:
            if error.retriable and not self.context.is_stopped():
                self.dispatcher.counters.stranded += 1
                _log.warning("request %s ends on worker %x: %s (%s)", self.request.id, leg.worker.id, error.message, reason)
                error = type(error)(f"{error.message.rstrip('.')}, and the request cannot go on elsewhere: {reason}.")
            self.fail(error)
            return
        self.leg = None
        self.dispatcher.release(leg, "migrated")
        self._continue_elsewhere(leg.worker.id, error)

    def _why_not_continue(self, leg: Leg, error: DynamoError) -> str | None:
        if not error.retriable:
            return "not retriable"
        if self.context.is_stopped():
            return "cancelled"
        if self._moves >= self.dispatcher.migration_limit:
            return f"migration limit of {self.dispatcher.migration_limit} reached"
        limit = self.dispatcher.migration_max_seq_len
        if limit and len(self._origin.token_ids) + len(self.receiver.generated) > limit:
            self.dispatcher.counters.too_long += 1
            return f"longer than the migration limit of {limit} tokens"
        return obstacle(self._origin, leg.worker.card.resume) if self.receiver.generated else None

    def _continue_elsewhere(self, lost: int, error: DynamoError) -> None:
        generated = self.receiver.generated
        _log.info("request %s leaves worker %x after %d tokens: %s", self.request.id, lost, len(generated), error.message)
        if generated and not remainder(self._origin, generated):
            self.receiver.on_items([{"finish_reason": "length"}])
            return
        self._moves += 1
        self.dispatcher.counters.migrated += 1
        self.request = resumed(self._origin, generated)
        self.route = msgspec.structs.replace(
            self.route,
            token_ids=self.request.token_ids,
            max_tokens=self.request.stop.max_tokens,
            excluded=self.route.excluded | {lost},
        )
        self.dispatcher.enqueue(self)

    def _close(self, outcome: Outcome) -> None:
        if self.closed:
            return
        self.closed = True
        del self.receiver  # which holds this sequence: a circle that only the garbage collector would open
        leg, self.leg = self.leg, None
        if leg is not None:
            self.dispatcher.release(leg, outcome)
        else:
            self.dispatcher.router.tell("dropped", self.route)
