"""Applications that are replaced while they have requests."""

from __future__ import annotations

import asyncio
from typing import Any

from dynamo_core.http.switch import AppSwitch


class Held:
    """An application whose requests end when the test says so."""

    def __init__(self) -> None:
        self.entered = asyncio.Event()
        self.leave = asyncio.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.entered.set()
        await self.leave.wait()


def request(switch: AppSwitch) -> asyncio.Task[None]:
    scope: Any = {"type": "http"}
    nothing: Any = None
    return asyncio.ensure_future(switch(scope, nothing, nothing))


async def test_a_request_ends_where_it_began_and_later_ones_go_to_the_other() -> None:
    one, two = Held(), Held()
    switch = AppSwitch(one)  # type: ignore[arg-type]
    first = request(switch)
    await one.entered.wait()
    earlier = switch.swap(two)  # type: ignore[arg-type]
    second = request(switch)
    await two.entered.wait()
    assert not await earlier.idle(0.01)
    draining = asyncio.create_task(earlier.idle(10))
    one.leave.set()
    assert await draining
    assert first.done()
    assert not second.done()
    two.leave.set()
    await second


async def test_what_has_no_requests_is_idle_at_once() -> None:
    switch = AppSwitch(Held())  # type: ignore[arg-type]
    assert await switch.swap(Held()).idle(0)  # type: ignore[arg-type]
