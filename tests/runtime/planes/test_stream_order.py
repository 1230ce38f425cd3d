"""Streams against a naive model: a list a stream."""

from __future__ import annotations

import asyncio
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from dynamo_core.contracts import Context, Instance
from dynamo_core.runtime.planes.frames import WINDOW
from dynamo_core.runtime.planes.inproc import InprocHub, InprocPlane
from dynamo_core.specs import PlaneContext

STREAMS = 3
streams = st.integers(0, STREAMS - 1)
steps = st.one_of(
    st.tuples(st.just("item"), streams, st.sampled_from([1, 10, 30_000, 65_500, 65_536, 200_000])),
    st.tuples(st.just("burst"), streams, st.sampled_from([2, WINDOW // 2, WINDOW, WINDOW + 1, 3 * WINDOW])),
    st.tuples(st.just("pause"), streams, st.none()),
    st.tuples(st.just("resume"), streams, st.none()),
    st.tuples(st.just("kill"), streams, st.none()),
    st.tuples(st.just("turn"), st.just(0), st.integers(1, 5)),
)


async def play(script: list[tuple[str, int, Any]], receiver_type: Any) -> None:
    hub = InprocHub()
    server, client = (InprocPlane(PlaneContext(namespace="t", run_dir="", instance_id=number), hub) for number in (1, 2))
    sinks: dict[int, Any] = {}

    def accept(request: int, context: Context, sink: Any) -> None:
        sinks[request] = sink

    address = await server.serve("a.b.c", accept)
    instance = Instance(instance_id=1, namespace="a", component="b", endpoint="c", address=address)
    receivers = [receiver_type() for _ in range(STREAMS)]
    calls = [client.open(instance, number, Context(), receivers[number]) for number in range(STREAMS)]
    await client.connect(instance)
    model: list[list[Any]] = [[] for _ in range(STREAMS)]
    killed = set()
    for action, number, value in script:
        if action == "item":
            sinks[number].item("x" * value)
            model[number].append("x" * value)
        elif action == "burst":
            for item in range(value):
                sinks[number].item(item)
            model[number] += range(value)
        elif action == "turn":
            for _ in range(value):
                await asyncio.sleep(0)
        elif action == "kill":
            calls[number].cancel(kill=True)
            killed.add(number)
        else:
            getattr(calls[number], action)()
    for number in range(STREAMS):
        sinks[number].end()
        calls[number].resume()
    for number, receiver in enumerate(receivers):
        if number in killed:
            assert receiver.items == model[number][: len(receiver.items)]
            assert not receiver.ended.is_set()
        else:
            assert await receiver.result() == model[number]
    await client.close()
    await server.close()


@settings(max_examples=60, deadline=None)
@given(script=st.lists(steps, max_size=25))
def test_every_stream_gets_exactly_its_items_in_order(script: list[tuple[str, int, Any]], new_receiver: Any) -> None:
    asyncio.run(play(script, new_receiver))
