"""Routers that would break at their first request are told at the start."""

from __future__ import annotations

from typing import Any

import pytest

from dynamo_core.builtins.direct import Direct
from dynamo_core.builtins.remote import Remote
from dynamo_core.plugins.router_check import router_faults


class Good:
    def __init__(self, config: Any, context: Any) -> None:
        self.late = True

    def select(self, requests: Any, workers: Any) -> Any: ...

    def finished(self, request: Any, worker_id: int, *rest: Any, more: int = 0) -> None: ...

    @staticmethod
    def worker_added(worker: Any) -> None: ...

    @classmethod
    def kv_lost(cls, worker_id: int, dp_rank: int) -> None: ...

    async def query(self, request: Any, workers: Any) -> Any: ...

    async def close(self) -> None: ...


class Waits(Good):
    async def select(self, requests: Any, workers: Any) -> Any: ...


class Streams(Good):
    async def select(self, requests: Any, workers: Any) -> Any:
        yield None


class Narrow(Good):
    def select(self, requests: Any) -> Any: ...


class Early(Good):
    async def first_token(self, request: Any, worker_id: int) -> None: ...


class Short(Good):
    def finished(self, request: Any, worker_id: int) -> None: ...  # type: ignore[override]


class Long(Good):
    def first_token(self, request: Any, worker_id: int, when: float) -> None: ...


class Data(Good):
    select = 7  # type: ignore[assignment]


class Missing:
    def __init__(self, config: Any, context: Any) -> None: ...


class Slotted(Good):
    __slots__ = ("output_tokens",)


@pytest.mark.parametrize("router", [Good, Slotted, Direct, Remote])
def test_a_good_class_has_no_faults(router: Any) -> None:
    assert list(router_faults(router)) == []


@pytest.mark.parametrize(
    ("router", "fault"),
    [
        (Waits, "has an asynchronous select, and the frontend does not wait for it: define it without async"),
        (Streams, "has an asynchronous select"),
        (Narrow, "has a method select that cannot be called with 2 arguments: define select(self, requests, workers)"),
        (Early, "has an asynchronous first_token"),
        (Short, "has a method finished that cannot be called with 3 arguments"),
        (Long, "has a method first_token that cannot be called with 2 arguments: define first_token(self, request, worker_id)"),
        (Data, "has select, which is no method"),
        (Missing, "has no method select: define select(self, requests, workers)"),
    ],
)
def test_a_fault_is_told_of_the_class_and_of_what_it_makes(router: Any, fault: str) -> None:
    (told,) = router_faults(router)
    assert told.startswith(fault)
    (told,) = router_faults(router(None, None))
    assert told.startswith(fault)


def test_methods_that_objects_bring_themselves_are_checked_on_them() -> None:
    router = Good(None, None)
    router.output_tokens = lambda request, worker_id: None  # type: ignore[attr-defined]
    (told,) = router_faults(router)
    assert "output_tokens" in told
