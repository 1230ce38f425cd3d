"""Requests that wait in the router: who goes next when a worker has room."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence

from dynamo_core.contracts import RouteRequest
from dynamo_kv_router.config import KvRouterConfig

__all__ = ["WaitingLine"]

_DEFAULT = "default"
_MANY = 1024
"""Classes from which on those that owe nothing are forgotten."""


class _Waiting:
    """A request from its first hold to its route."""

    __slots__ = ("key", "scored")

    def __init__(self, key: float, scored: float) -> None:
        self.key = key
        """The lowest of its class goes first."""
        self.scored = scored
        """When, in seconds."""


class _Class:
    """One of those that share the workers: start-time fair queueing."""

    __slots__ = ("finish", "weight")

    def __init__(self, weight: float) -> None:
        self.weight = weight
        self.finish = 0.0
        """Virtual time at which what was sent of it is paid for."""


class WaitingLine:
    """Order of those that wait: strict priority; then the classes by their weights, in prompt tokens sent; then the policy.

    ``uncached`` tells how much of a prompt is in no cache; asked by wspt only. The dispatcher keeps the requests themselves and
    offers all of them in each turn; the line remembers what it found out about them.
    """

    def __init__(self, config: KvRouterConfig, uncached: Callable[[RouteRequest], int]) -> None:
        self._policy = config.router_queue_policy
        self._refresh = config.router_overlap_refresh_after_secs
        self._limit = config.router_queue_limit
        self._by = config.router_class_by
        self._weights = config.router_classes
        self._fair = bool(self._weights) or self._by == "tenant"
        self._uncached = uncached
        self._classes: dict[str, _Class] = {}
        self._virtual = 0.0
        self._waiting: dict[RouteRequest, _Waiting] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def hold(self, request: RouteRequest, now: float) -> bool:
        """It waits (still); false if too many do already."""
        if request not in self._waiting:
            if len(self._waiting) >= self._limit:
                return False
            self._waiting[request] = _Waiting(self._key(request), now)
        return True

    def leave(self, request: RouteRequest) -> None:
        """It waits no longer, for whatever reason."""
        self._waiting.pop(request, None)

    def charge(self, request: RouteRequest) -> None:
        """It was sent at its class's expense."""
        if self._fair:
            class_ = self._class(request)
            start = max(self._virtual, class_.finish)
            self._virtual = start
            class_.finish = start + max(1, len(request.token_ids)) / class_.weight

    def order(self, requests: Sequence[RouteRequest], now: float) -> Iterator[int]:
        """Positions in ``requests``, first who goes first. Lazy: call :meth:`charge` before asking for the next one."""
        tiers: dict[int, dict[_Class, list[tuple[float, int, int]]]] = {}
        one = _Class(1.0)
        for position, request in enumerate(requests):
            class_ = self._class(request) if self._fair else one
            line = tiers.setdefault(-request.hints.strict_priority, {}).setdefault(class_, [])
            line.append((self._current_key(request, now), -len(request.token_ids), position))
        for strict in sorted(tiers):
            lines = tiers[strict]
            for line in lines.values():
                heapq.heapify(line)
            while lines:
                class_ = min(lines, key=lambda candidate: (max(self._virtual, candidate.finish), lines[candidate][0]))
                line = lines[class_]
                position = heapq.heappop(line)[2]
                if not line:
                    del lines[class_]
                yield position

    def _current_key(self, request: RouteRequest, now: float) -> float:
        waiting = self._waiting.get(request)
        if waiting is None:
            return self._key(request)
        if self._policy == "wspt" and now - waiting.scored >= self._refresh:
            waiting.key, waiting.scored = self._key(request), now
        return waiting.key

    def _key(self, request: RouteRequest) -> float:
        """A priority is so many seconds: one of −5 goes before requests that came up to 5 seconds earlier."""
        if self._policy == "fcfs":
            return request.arrival + request.priority
        if self._policy == "lcfs":
            return request.priority - request.arrival
        weight = 1.0 - request.priority if request.priority < 0 else 1.0 / (1.0 + request.priority)
        return -weight / max(1, self._uncached(request))

    def _class(self, request: RouteRequest) -> _Class:
        by = self._by
        if by == "tenant":
            name = request.hints.tenant or _DEFAULT
        else:
            given = request.headers.get(by.partition(":")[2].lower()) if by != "class" else request.hints.service_class
            name = given if given in self._weights else _DEFAULT
        class_ = self._classes.get(name)
        if class_ is None:
            if len(self._classes) >= _MANY:
                self._classes = {name: class_ for name, class_ in self._classes.items() if class_.finish > self._virtual}
            class_ = self._classes[name] = _Class(self._weights.get(name, 1.0))
        return class_
