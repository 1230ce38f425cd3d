"""Behaviour that every multiplexed plane shares: over Unix sockets, TCP, NATS and in process."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from dynamo_core.contracts import Context
from dynamo_core.errors import (
    CannotConnect,
    DeadlineExceeded,
    DynamoError,
    EngineError,
    EngineShutdown,
    InvalidRequest,
    Overloaded,
)
from dynamo_core.runtime.planes.frames import WINDOW


class Server:
    """Remembers each request's context and sink and writes nothing by itself."""

    def __init__(self) -> None:
        self.requests: list[Any] = []
        self.contexts: list[Context] = []
        self.sinks: list[Any] = []
        self._waiting = asyncio.Event()

    def __call__(self, request: Any, context: Context, sink: Any) -> None:
        self.requests.append(request)
        self.contexts.append(context)
        self.sinks.append(sink)
        self._waiting.set()

    async def opened(self, count: int = 1) -> None:
        while len(self.sinks) < count:
            self._waiting.clear()
            await asyncio.wait_for(self._waiting.wait(), 20)


def echo(request: Any, context: Context, sink: Any) -> None:
    for item in request:
        sink.item(item)
    sink.end()


async def test_items_arrive_in_order_and_the_stream_ends(pair: Any) -> None:
    await pair.serve(echo)
    _, receiver = pair.open([1, "two", {"three": [3.0, None, b"3"]}])
    assert await receiver.result() == [1, "two", {"three": [3.0, None, b"3"]}]


async def test_the_context_travels(pair: Any) -> None:
    server = Server()
    await pair.serve(server)
    deadline = time.time() + 60
    pair.open(1, Context("r-1", {"k": [1]}, deadline=deadline, trace_headers={"traceparent": "00-1"}))
    await server.opened()
    context = server.contexts[0]
    assert (context.id(), context.metadata, context.deadline) == ("r-1", {"k": [1]}, deadline)
    assert context.trace_headers == {"traceparent": "00-1"}


async def test_what_is_written_in_one_turn_arrives_in_one_call(pair: Any) -> None:
    server = Server()
    await pair.serve(server)
    receivers = [pair.open(number)[1] for number in range(20)]
    await server.opened(20)
    for step in range(3):
        for sink in server.sinks:
            sink.item(step)
    for sink in server.sinks:
        sink.end()
    for receiver in receivers:
        assert await receiver.result() == [0, 1, 2]
        assert receiver.calls == 1


async def test_many_streams_share_a_connection_and_do_not_mix(pair: Any) -> None:
    await pair.serve(echo)
    receivers = [pair.open([number] * (number % 50 + 1))[1] for number in range(1000)]
    for number, receiver in enumerate(receivers):
        assert await receiver.result() == [number] * (number % 50 + 1)
    assert len(pair.client._dialled) == 1


async def test_ten_megabytes_travel_both_ways_and_others_pass_between(pair: Any) -> None:
    await pair.serve(echo)
    large = b"0123456789abcdef" * (10 * 1024 * 1024 // 16)
    _, slow = pair.open([large, 1])
    _, quick = pair.open(["small"])
    assert await quick.result() == ["small"]
    assert not slow.ended.is_set()
    assert await slow.result() == [large, 1]


async def test_a_large_item_keeps_its_place_in_its_stream(pair: Any) -> None:
    await pair.serve(echo)
    items = [1, "x" * 200_000, 2, "y" * 70_000, 3]
    _, receiver = pair.open(items)
    assert await receiver.result() == items


async def test_many_large_items_respect_credit(pair: Any) -> None:
    await pair.serve(echo)
    items = [bytes([number]) * 100_000 for number in range(200)]
    _, receiver = pair.open(items)
    assert await receiver.result() == items


@pytest.mark.parametrize("error", [Overloaded("full", retry_after=1.5), InvalidRequest("bad", param="n")])
async def test_an_error_reaches_the_client_as_its_own_class(pair: Any, error: DynamoError) -> None:
    server = Server()
    await pair.serve(server)
    _, receiver = pair.open(1)
    await server.opened()
    server.sinks[0].item("first")
    server.sinks[0].error(error)
    server.sinks[0].item("never")
    with pytest.raises(type(error), match=error.message):
        await receiver.result()
    assert receiver.items == ["first"]
    assert (receiver.error.param, receiver.error.retry_after) == (error.param, error.retry_after)


async def test_a_handler_that_raises_fails_its_request_only(pair: Any) -> None:
    def handler(request: Any, context: Context, sink: Any) -> None:
        if request == "bug":
            raise RuntimeError("a secret")
        if request == "full":
            raise Overloaded("full")
        echo(request, context, sink)

    await pair.serve(handler)
    with pytest.raises(EngineError) as caught:
        await pair.open("bug")[1].result()
    assert "secret" not in caught.value.message
    with pytest.raises(Overloaded):
        await pair.open("full")[1].result()
    assert await pair.open([1])[1].result() == [1]


async def test_a_value_that_msgpack_lacks_fails_its_stream_only(pair: Any) -> None:
    server = Server()
    await pair.serve(server)
    _, bad = pair.open(object())
    _, good = pair.open(1)
    _, other = pair.open(2)
    with pytest.raises(InvalidRequest):
        await bad.result()
    await server.opened(2)
    first, second = server.sinks
    first.item(1)
    first.item(object())
    first.item(3)
    first.end()
    second.item("fine")
    second.end()
    with pytest.raises(EngineError):
        await good.result()
    assert good.items == []
    assert await other.result() == ["fine"]


async def test_nobody_at_the_address_is_cannot_connect(pair: Any) -> None:
    await pair.serve(echo)
    await pair.server.close()
    _, receiver = pair.open([1])
    with pytest.raises(CannotConnect):
        await receiver.result()
    with pytest.raises(CannotConnect):
        await pair.client.connect(pair.instance())


async def test_an_address_of_another_kind_is_cannot_connect(pair: Any) -> None:
    for pair.address in ("carrier-pigeon:7", "tcp:127.0.0.1:port", ""):
        with pytest.raises(CannotConnect):
            await pair.open([1])[1].result()


async def test_another_process_at_the_address_is_not_mistaken_for_the_instance(pair: Any, new_receiver: Any) -> None:
    await pair.serve(echo)
    receiver = new_receiver()
    pair.client.open(pair.instance(instance_id=99), [1], Context(), receiver)
    with pytest.raises(CannotConnect):
        await receiver.result()


async def test_an_endpoint_that_is_not_served_is_cannot_connect(pair: Any) -> None:
    await pair.serve(echo)
    with pytest.raises(CannotConnect):
        await pair.open([1], endpoint="other")[1].result()


async def test_a_deadline_that_has_passed_is_refused(pair: Any) -> None:
    await pair.serve(echo)
    with pytest.raises(DeadlineExceeded):
        await pair.open([1], Context(deadline=time.time() - 1))[1].result()


# --- cancellation ------------------------------------------------------------------------------------------------------------


async def test_stopping_the_context_stops_the_servers_and_the_stream_ends_by_itself(pair: Any) -> None:
    server = Server()
    await pair.serve(server)
    context = Context()
    _, receiver = pair.open(1, context)
    await server.opened()
    context.stop_generating()
    assert await server.contexts[0].async_killed_or_stopped()
    assert not server.contexts[0].is_killed()
    server.sinks[0].item("last")
    server.sinks[0].end()
    assert await receiver.result() == ["last"]


async def test_killing_the_context_delivers_nothing_more(pair: Any) -> None:
    server = Server()
    await pair.serve(server)
    context = Context()
    _, killed = pair.open(1, context)
    _, other = pair.open(2)
    await server.opened(2)
    server.sinks[0].item("in flight")
    context.kill()
    await server.contexts[0].async_killed_or_stopped()
    assert server.contexts[0].is_killed()
    server.sinks[0].item("late")
    server.sinks[0].end()
    server.sinks[1].end()
    await other.result()
    assert killed.items == []
    assert not killed.ended.is_set()
    assert not pair.client._dialled[pair.address].streams


async def test_a_stream_can_be_cancelled_without_its_context(pair: Any) -> None:
    server = Server()
    await pair.serve(server)
    stream, _ = pair.open(1)
    await server.opened()
    stream.cancel(kill=False)
    await server.contexts[0].async_killed_or_stopped()
    stream.cancel(kill=True)
    await asyncio.wait_for(pair.client.connect(pair.instance()), 5)
    assert server.contexts[0].is_killed()


async def test_a_kill_in_the_middle_of_a_large_item_frees_both_sides(pair: Any) -> None:
    server = Server()
    await pair.serve(server)
    stream, receiver = pair.open(1)
    await server.opened()
    server.sinks[0].item("x" * 30_000_000)
    server.sinks[0].end()
    await asyncio.sleep(0)
    stream.cancel(kill=True)
    await pair.client.connect(pair.instance())
    assert receiver.items == []
    connection = pair.client._dialled[pair.address]
    assert not connection._assemblers
    (accepted,) = pair.server._accepted
    assert not accepted._backlogs


async def test_a_lost_client_kills_its_requests(pair: Any) -> None:
    server = Server()
    await pair.serve(server)
    pair.open(1)
    await server.opened()
    await pair.client.close()
    await asyncio.wait_for(server.contexts[0].async_killed_or_stopped(), 5)
    assert server.contexts[0].is_killed()
    server.sinks[0].item(1)
    server.sinks[0].end()
    await asyncio.wait_for(server.sinks[0].ready(), 5)


async def test_a_handler_that_passes_its_context_on_links_the_two(pair: Any, new_receiver: Any) -> None:
    backend = Server()
    await pair.serve(backend, "backend")

    def middle(request: Any, context: Context, sink: Any) -> None:
        pair.client.open(pair.instance("backend"), request, context, new_receiver())

    await pair.serve(middle, "middle")
    context = Context()
    pair.open(1, context, endpoint="middle")
    await backend.opened()
    context.stop_generating()
    await asyncio.wait_for(backend.contexts[0].async_killed_or_stopped(), 5)
    assert backend.contexts[0].id() == context.id()


# --- credit ------------------------------------------------------------------------------------------------------------------


async def test_a_paused_stream_stops_at_the_window_and_others_go_on(pair: Any) -> None:
    server = Server()
    await pair.serve(server)
    stream, paused = pair.open(1)
    _, free = pair.open(2)
    await server.opened(2)
    stream.pause()
    for number in range(5 * WINDOW):
        server.sinks[0].item(number)
        server.sinks[1].item(number)
    server.sinks[0].end()
    server.sinks[1].end()
    assert await free.result() == list(range(5 * WINDOW))
    assert len(paused.items) <= WINDOW
    assert not paused.ended.is_set()
    stream.resume()
    assert await paused.result() == list(range(5 * WINDOW))


async def test_a_handler_that_waits_for_credit_stays_bounded(pair: Any) -> None:
    produced = 0
    tasks = []

    async def produce(sink: Any) -> None:
        nonlocal produced
        for produced in range(1, 10 * WINDOW + 1):
            await sink.ready()
            sink.item(produced)
        sink.end()

    await pair.serve(lambda request, context, sink: tasks.append(asyncio.create_task(produce(sink))))
    stream, receiver = pair.open(1)
    stream.pause()
    await receiver.have(WINDOW)
    await pair.client.connect(pair.instance())
    assert produced <= WINDOW + 1
    stream.resume()
    assert await receiver.result() == list(range(1, 10 * WINDOW + 1))
    await asyncio.gather(*tasks)


async def test_a_receiver_that_raises_loses_its_stream_only(pair: Any) -> None:
    server = Server()
    await pair.serve(server)
    _, broken = pair.open(1)
    _, other = pair.open(2)

    def fail(items: list[Any]) -> None:
        raise RuntimeError("a receiver's bug")

    broken.on_items = fail
    await server.opened(2)
    for sink in server.sinks:
        sink.item(1)
    await asyncio.wait_for(server.contexts[0].async_killed_or_stopped(), 5)
    server.sinks[1].end()
    assert await other.result() == [1]


# --- leaving -----------------------------------------------------------------------------------------------------------------


async def test_an_endpoint_that_leaves_refuses_new_requests_and_finishes_old_ones(pair: Any) -> None:
    server = Server()
    await pair.serve(server)
    gone = []
    pair.client.on_gone(lambda address, endpoint: gone.append(endpoint))
    _, running = pair.open(1)
    await server.opened()
    leaving = asyncio.create_task(pair.server.unserve("test.backend.generate"))
    await asyncio.sleep(0)
    with pytest.raises(EngineShutdown):
        await pair.open(2)[1].result()
    assert gone == ["test.backend.generate"]
    assert not leaving.done()
    server.sinks[0].item("still here")
    server.sinks[0].end()
    assert await running.result() == ["still here"]
    await asyncio.wait_for(leaving, 5)


async def test_an_endpoint_can_be_served_again(pair: Any) -> None:
    await pair.serve(echo)
    await pair.server.unserve("test.backend.generate")
    with pytest.raises(EngineShutdown):
        await pair.open([1])[1].result()
    await pair.serve(echo)
    assert await pair.open([1])[1].result() == [1]


async def test_a_plane_that_closes_tells_running_streams_to_go_elsewhere(pair: Any) -> None:
    server = Server()
    await pair.serve(server)
    _, running = pair.open(1)
    await server.opened()
    await pair.server.close()
    with pytest.raises(EngineShutdown):
        await running.result()
    assert server.contexts[0].is_killed()


async def test_a_lost_connection_is_told_before_its_streams_fail(pair: Any) -> None:
    server = Server()
    await pair.serve(server)
    _, running = pair.open(1)
    await server.opened()
    order = []
    pair.client.on_gone(lambda address, endpoint: order.append((address, endpoint)))
    running.on_error = lambda error: (order.append(type(error).__name__), running.ended.set())
    for connection in tuple(pair.server._accepted):
        connection.abort()
    await running.result()
    assert order == [(pair.address, ""), "Disconnected"]
    assert server.contexts[0].is_killed()


async def test_what_was_written_before_closing_still_arrives(pair: Any) -> None:
    server = Server()
    await pair.serve(server)
    _, receiver = pair.open(1)
    await server.opened()
    large = b"x" * 4_000_000
    server.sinks[0].item(large)
    server.sinks[0].end()
    await pair.server.close()
    assert await receiver.result() == [large]
