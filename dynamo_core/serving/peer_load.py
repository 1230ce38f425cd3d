"""The requests of other frontends, as this one's workers and routers see them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple, Protocol

from dynamo_core.contracts import ForeignRequest
from dynamo_core.serving.session_affinity import SessionPlace

__all__ = ["ModelLoad", "PeerRequests"]

_LIMIT = 65_536
"""Running requests believed of one frontend; the oldest go first."""


class ModelLoad(Protocol):
    """One model's side: its dispatcher. A worker that is not known here is none of its business."""

    def foreign_begun(self, worker_id: int, request: ForeignRequest) -> None: ...

    def foreign_answered(self, worker_id: int, request: ForeignRequest) -> None: ...

    def foreign_ended(self, worker_id: int, request: ForeignRequest) -> None: ...

    def foreign_session(self, place: SessionPlace) -> None: ...

    def session_places(self) -> Iterable[SessionPlace]: ...


class _Request:
    __slots__ = ("answered", "foreign", "model", "worker_id")

    def __init__(self, model: str, worker_id: int, foreign: ForeignRequest) -> None:
        self.model = model
        self.worker_id = worker_id
        self.foreign = foreign
        self.answered = False


class _SessionOf(NamedTuple):
    model: str
    place: SessionPlace


class PeerRequests:
    """Of one other frontend, whether their model is served here already or not. Each that began ends once."""

    def __init__(self, models: Mapping[str, ModelLoad]) -> None:
        self._models = models
        self._running: dict[int, _Request] = {}
        self._sessions: list[_SessionOf] = []
        """Of models that are not served here yet."""

    def __len__(self) -> int:
        return len(self._running)

    def begun(
        self, number: int, model: str, worker_id: int, foreign: ForeignRequest, session: SessionPlace | None = None
    ) -> None:
        self.ended(number)
        self._running[number] = _Request(model, worker_id, foreign)
        load = self._models.get(model)
        if load is not None:
            load.foreign_begun(worker_id, foreign)
        if session is not None:
            self.session(model, session)
        if len(self._running) > _LIMIT:
            self.ended(next(iter(self._running)))

    def answered(self, number: int) -> None:
        request = self._running.get(number)
        if request is not None and not request.answered:
            request.answered = True
            load = self._models.get(request.model)
            if load is not None:
                load.foreign_answered(request.worker_id, request.foreign)

    def ended(self, number: int) -> None:
        request = self._running.pop(number, None)
        load = self._models.get(request.model) if request is not None else None
        if request is not None and load is not None:
            load.foreign_ended(request.worker_id, request.foreign)

    def session(self, model: str, place: SessionPlace) -> None:
        load = self._models.get(model)
        if load is not None:
            load.foreign_session(place)
        elif len(self._sessions) < _LIMIT:
            self._sessions.append(_SessionOf(model, place))

    def clear(self) -> None:
        """All of them are over, as far as anybody knows."""
        for number in tuple(self._running):
            self.ended(number)

    def replay(self, model: str, load: ModelLoad) -> None:
        """The model is served here from now on."""
        for request in self._running.values():
            if request.model == model:
                load.foreign_begun(request.worker_id, request.foreign)
                if request.answered:
                    load.foreign_answered(request.worker_id, request.foreign)
        for session in self._sessions:
            if session.model == model:
                load.foreign_session(session.place)
        self._sessions = [session for session in self._sessions if session.model != model]
