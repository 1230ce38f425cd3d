"""What one model's dispatcher shares with those of other frontends: running requests and the places of sessions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from dynamo_core.contracts import ForeignRequest, Route, RouteRequest, WorkerView
from dynamo_core.serving.router_guard import RouterGuard
from dynamo_core.serving.session_affinity import SessionAffinity, SessionPlace

__all__ = ["ModelSharing", "RequestLedger"]


class RequestLedger(Protocol):
    """Tells the other frontends; :class:`~dynamo_core.serving.replicas.ReplicaSync`."""

    def begun(self, model: str, worker_id: int, request: RouteRequest, route: Route, session: SessionPlace | None) -> int: ...

    def answered(self, number: int) -> None: ...

    def ended(self, number: int) -> None: ...


class ModelSharing:
    """Outgoing, the dispatcher calls it at each step of a request; incoming, it keeps the counts of foreign requests in the
    workers' views and tells the router of them. ``ledger`` and ``sessions`` may each be absent."""

    def __init__(self, model: str, ledger: RequestLedger | None = None, sessions: SessionAffinity | None = None) -> None:
        self.sessions = sessions
        self._model = model
        self._ledger = ledger
        self._router: RouterGuard | None = None
        self._workers: Mapping[int, WorkerView] = {}
        self._changed: Callable[[], None] = lambda: None
        self._foreign: dict[int, dict[ForeignRequest, bool]] = {}
        """By worker, also of workers that are not known yet; with whether the first token came."""

    def attach(self, router: RouterGuard, workers: Mapping[int, WorkerView], changed: Callable[[], None]) -> None:
        """The dispatcher's own; before everything else. A router that is not told that foreign requests begin is not told of
        their ends."""
        self._router = router if router.has("routed_elsewhere") else None
        self._workers = workers
        self._changed = changed

    # --- this frontend's requests --------------------------------------------------------------------------------------------

    def pin(self, request: RouteRequest, offered: Mapping[int, WorkerView]) -> None:
        """Make the request follow its session, if it has one."""
        if self.sessions is not None and request.session is not None:
            request.pinned = self.sessions.worker(request, self._workers, offered)

    def begun(self, worker_id: int, request: RouteRequest, route: Route) -> int:
        place = None
        if self.sessions is not None and request.session is not None:
            place = self.sessions.placed(request.session, worker_id)
        return 0 if self._ledger is None else self._ledger.begun(self._model, worker_id, request, route, place)

    def answered(self, number: int) -> None:
        if self._ledger is not None:
            self._ledger.answered(number)

    def ended(self, number: int) -> None:
        if self._ledger is not None:
            self._ledger.ended(number)

    # --- workers -------------------------------------------------------------------------------------------------------------

    def worker_added(self, worker: WorkerView) -> None:
        for request, answered in self._foreign.get(worker.id, {}).items():
            self._count(worker, request, 1)
            self._tell("routed_elsewhere", request, worker.id)
            if answered:
                self._tell("first_token", request, worker.id)

    def worker_removed(self, worker_id: int) -> None:
        """Its foreign requests are over for the router; should the worker come back, they are told again."""
        for request in self._foreign.get(worker_id, ()):
            self._tell("finished", request, worker_id, "failed")

    # --- other frontends' requests -------------------------------------------------------------------------------------------

    def foreign_begun(self, worker_id: int, request: ForeignRequest) -> None:
        self._foreign.setdefault(worker_id, {})[request] = False
        worker = self._workers.get(worker_id)
        if worker is not None:
            self._count(worker, request, 1)
            self._tell("routed_elsewhere", request, worker_id)

    def foreign_answered(self, worker_id: int, request: ForeignRequest) -> None:
        requests = self._foreign.get(worker_id)
        if requests is not None and request in requests:
            requests[request] = True
            if worker_id in self._workers:
                self._tell("first_token", request, worker_id)
                self._changed()

    def foreign_ended(self, worker_id: int, request: ForeignRequest) -> None:
        requests = self._foreign.get(worker_id)
        if requests is None or requests.pop(request, None) is None:
            return
        if not requests:
            del self._foreign[worker_id]
        worker = self._workers.get(worker_id)
        if worker is not None:
            self._count(worker, request, -1)
            self._tell("finished", request, worker_id, "completed")
            self._changed()

    def foreign_session(self, place: SessionPlace) -> None:
        if self.sessions is not None:
            self.sessions.heard(place)

    def session_places(self) -> Iterable[SessionPlace]:
        return () if self.sessions is None else self.sessions.places()

    def _count(self, worker: WorkerView, request: ForeignRequest, sign: int) -> None:
        worker.inflight_elsewhere += sign
        worker.inflight_tokens_elsewhere += sign * request.prompt_tokens

    def _tell(self, method: str, *args: Any) -> None:
        if self._router is not None:
            self._router.tell(method, *args)
