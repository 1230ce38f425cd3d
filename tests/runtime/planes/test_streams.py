"""Events as streams of the request plane: one connection, losses that are told, subscribers that fall behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from dynamo_core.contracts import Context, Instance
from dynamo_core.runtime import DistributedRuntime
from dynamo_core.runtime.planes import streams as module
from dynamo_core.runtime.planes.inproc import InprocHub, InprocPlane
from dynamo_core.runtime.planes.streams import RequestPlaneEvents
from dynamo_core.runtime.planes.tcp import TcpConfig, TcpPlane
from dynamo_core.specs import PlaneContext


class Heard:
    """What one subscription told, in order: payloads, and "lost"."""

    def __init__(self, plane: RequestPlaneEvents, address: str, topic: str = "kv") -> None:
        self.told: list[Any] = []
        self.subscription = plane.subscribe(address, topic, self.told.append, lambda: self.told.append("lost"))


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110  # what the other end of a socket does
            await asyncio.sleep(0.005)


@pytest.fixture
async def make(folder: str) -> AsyncIterator[Callable[[int], tuple[TcpPlane, RequestPlaneEvents]]]:
    made: list[Any] = []

    def pair(number: int) -> tuple[TcpPlane, RequestPlaneEvents]:
        plane = TcpPlane(TcpConfig(), PlaneContext(namespace="test", run_dir=folder, instance_id=number))
        events = RequestPlaneEvents(plane, number)
        made.extend((events, plane))
        return plane, events

    yield pair
    for one in made:
        await one.close()


async def test_events_and_responses_of_one_turn_arrive_in_one_frame(make: Any) -> None:
    (plane, events), (caller, hearer) = make(1), make(2)
    address = await events.address()

    def answer(request: Any, context: Context, sink: Any) -> None:
        def step() -> None:
            sink.item("token")
            events.publish("kv", b"stored")
            sink.end()

        asyncio.get_running_loop().call_soon(step)

    where = await plane.serve("test.backend.generate", answer)
    heard = Heard(hearer, address)
    await until(lambda: events._subscribers.get("kv"))
    (connection,) = caller._dialled.values()
    frames: list[list[str]] = []
    receive = connection._receive
    connection._receive = lambda messages: (frames.append([type(m).__name__ for m in messages]), receive(messages))  # type: ignore[method-assign, func-returns-value]
    ended = asyncio.Event()

    class Receiver:
        def on_items(self, items: list[Any]) -> None: ...

        def on_error(self, error: Exception) -> None: ...

        def on_end(self) -> None:
            ended.set()

    instance = Instance(instance_id=1, namespace="test", component="backend", endpoint="generate", address=where)
    caller.open(instance, None, Context(), Receiver())
    await ended.wait()
    assert heard.told == [b"stored"]
    assert frames[-1] == ["Data", "Data", "End"]
    assert len(caller._dialled) == 1


async def test_what_was_published_before_the_subscription_is_told_as_lost(make: Any) -> None:
    (_, one), (_, two) = make(1), make(2)
    address = await one.address()
    one.publish("kv", b"early")
    heard, other = Heard(two, address), Heard(two, address, "kvload")
    await until(lambda: heard.told)
    one.publish("kv", b"late")
    one.publish("kvload", b"first")
    await until(lambda: other.told)
    assert heard.told == ["lost", b"late"]
    assert other.told == [b"first"]


async def test_a_connection_that_breaks_is_made_again_and_only_a_gap_is_told(make: Any) -> None:
    (plane, one), (_, two) = make(1), make(2)
    heard = Heard(two, await one.address())
    await until(lambda: one._subscribers.get("kv"))
    one.publish("kv", b"1")
    await until(lambda: heard.told)
    for gap in (False, True):
        heard.told.clear()
        (connection,) = plane._accepted
        connection.abort()
        await until(lambda: not one._subscribers.get("kv"))
        if gap:
            one.publish("kv", b"missed")
        await until(lambda: one._subscribers.get("kv"))
        one.publish("kv", b"heard")
        await until(lambda: b"heard" in heard.told)
        assert heard.told == (["lost"] if gap else []) + [b"heard"]
    heard.subscription.close()
    await until(lambda: not one._subscribers.get("kv"))


async def test_a_publisher_that_comes_later_or_again_is_found(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = InprocHub()

    def make(number: int) -> tuple[InprocPlane, RequestPlaneEvents]:
        plane = InprocPlane(PlaneContext(namespace="test", run_dir=folder, instance_id=number), hub)
        return plane, RequestPlaneEvents(plane, number)

    monkeypatch.setattr(module, "_RETRY_SECONDS", 0.01)
    (caller, two), (plane, one) = make(2), make(1)
    heard = Heard(two, "1@inproc:1")
    await asyncio.sleep(0.05)
    await one.address()
    await until(lambda: one._subscribers.get("kv"))
    one.publish("kv", b"1")
    await until(lambda: heard.told == [b"1"])
    await one.close()
    await plane.close()
    plane, one = make(1)
    await one.address()
    await until(lambda: one._subscribers.get("kv"))
    one.publish("kv", b"again")
    await until(lambda: b"again" in heard.told)
    assert heard.told == [b"1", "lost", b"again"]
    for part in (two, one, caller, plane):
        await part.close()


async def test_who_falls_behind_is_told_and_costs_a_bounded_queue(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_QUEUE", 4096)
    (plane, one), (_, two) = make(1), make(2)
    slow, quick = Heard(two, await one.address()), Heard(two, await one.address())
    await until(lambda: len(one._subscribers.get("kv", ())) == 2)
    slow.subscription._stream.pause()
    for number in range(20_000):
        one.publish("kv", b"%d" % number)
        if not number % 100:
            await until(lambda number=number: len(quick.told) > number)
    await until(lambda: quick.told[-1] == b"19999")
    assert quick.told == [b"%d" % number for number in range(20_000)]
    assert len(slow.told) < 4096
    (held,) = [len(stream._held) for stream in plane._accepted.copy().pop().streams.values() if stream._held]
    assert held < 4096
    slow.subscription._stream.resume()
    await until(lambda: slow.told[-1] == "lost")
    one.publish("kv", b"at last")
    await until(lambda: slow.told[-1] == b"at last")
    kept = slow.told.index("lost")
    assert slow.told == [*(b"%d" % number for number in range(kept)), "lost", b"at last"]


async def test_an_address_of_another_plane_and_a_subscription_without_topic_are_refused_in_words(make: Any) -> None:
    (_, one), (caller, two) = make(1), make(2)
    for address in ("ipc:///somewhere", "nats:dynamo.1", "redis://user@host", "1@", ""):
        with pytest.raises(ValueError, match="no address of the event plane request-plane"):
            two.subscribe(address, "kv", lambda _: None)
    assert not two._subscriptions
    number, _, where = (await one.address()).partition("@")
    errors: list[str] = []

    class Receiver:
        def on_items(self, items: list[Any]) -> None: ...

        def on_end(self) -> None: ...

        def on_error(self, error: Any) -> None:
            errors.append(error.message)

    place = dict(zip(("namespace", "component", "endpoint"), module._PLACE, strict=True))
    caller.open(Instance(instance_id=int(number, 16), address=where, **place), 7, Context(), Receiver())
    await until(lambda: errors)
    assert errors == ["A subscription names a topic."]


async def test_a_runtime_has_it_without_being_asked(tmp_path: Any) -> None:
    async with DistributedRuntime(None, "mem", run_dir=str(tmp_path)) as runtime:
        assert isinstance(runtime.event_plane, RequestPlaneEvents)
        heard = Heard(runtime.event_plane, await runtime.event_plane.address())
        await until(lambda: runtime.event_plane._subscribers.get("kv"))
        runtime.event_plane.publish("kv", b"x")
        await until(lambda: heard.told == [b"x"])


async def test_a_process_that_only_calls_does_not_listen(tmp_path: Any) -> None:
    async with DistributedRuntime(None, "file", run_dir=str(tmp_path / "run"), file_kv=str(tmp_path / "kv")) as runtime:
        client = await runtime.endpoint("test.backend.generate").client()
        assert client.instance_ids() == []
        assert not list((tmp_path / "run").iterdir())
        await runtime.event_plane.address()
        assert [path.suffix for path in (tmp_path / "run").iterdir()] == [".sock"]
