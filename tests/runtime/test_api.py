"""The rest of Dynamo's API: unary and bidirectional endpoints, typed endpoints, deadlines, blocking handlers, metrics."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest

from dynamo_core.contracts import Context
from dynamo_core.errors import ConfigError, DeadlineExceeded, EngineError, HttpError, InvalidRequest, NoInstances
from dynamo_core.runtime import DistributedRuntime, UnaryClient, dynamo_endpoint, serve_unary_endpoint
from dynamo_core.runtime.exposition import read_families

PATH = "test.backend.generate"


@pytest.fixture
async def make(tmp_path: Path) -> AsyncIterator[Callable[..., DistributedRuntime]]:
    """Makes runtimes that share a discovery folder and talk over Unix sockets."""
    made = []

    def runtime(*args: Any, **options: Any) -> DistributedRuntime:
        made.append(DistributedRuntime(*args, file_kv=str(tmp_path / "kv"), **{"event_plane": "inproc", **options}))
        return made[-1]

    yield runtime
    for one in made:
        await one.shutdown()


@pytest.fixture
async def spawn() -> AsyncIterator[Callable[..., asyncio.Task[Any]]]:
    """Owns tasks; what they raise after the test is over is nobody's business."""
    tasks: list[asyncio.Task[Any]] = []

    def start(coroutine: Any) -> asyncio.Task[Any]:
        tasks.append(asyncio.create_task(coroutine))
        return tasks[-1]

    yield start
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def collect(stream: Any) -> list[Any]:
    async with asyncio.timeout(20):
        return [item async for item in stream]


async def connect(runtime: DistributedRuntime, path: str = PATH) -> Any:
    client = await runtime.endpoint(path).client()
    await client.wait_for_instances(20)
    return client


@pytest.mark.parametrize("arguments", [(None, "file", False), (None, "file", "tcp"), (None, "file", "tcp", False)])
async def test_positional_arguments_are_taken_as_dynamo_takes_them(make: Any, spawn: Any, arguments: tuple[Any, ...]) -> None:
    async def hello(request: str) -> AsyncIterator[str]:
        yield f"Hello {request}!"

    server = make(*arguments)
    spawn(server.endpoint(PATH).serve_endpoint(hello))
    client = await connect(make(*arguments))
    assert [item.data() for item in await collect(await client.generate("sun"))] == ["Hello sun!"]
    assert server.endpoint(PATH).connection_id() == client.instance_ids()[0]


# --- unary -------------------------------------------------------------------------------------------------------------------


async def test_a_unary_endpoint_gives_exactly_one_response(make: Any, spawn: Any) -> None:
    async def double(request: int, *, context: Context) -> dict[str, Any]:
        return {"value": request * 2, "id": context.id()}

    spawn(serve_unary_endpoint(make().endpoint(PATH), double, metrics_labels=[("model", "m")]))
    client = UnaryClient(await connect(make()))
    assert await client.complete(21, context=Context("abc")) == {"value": 42, "id": "abc"}


async def test_a_unary_client_refuses_streams_and_a_unary_endpoint_generators(make: Any, spawn: Any) -> None:
    async def count(request: int) -> AsyncIterator[int]:
        for number in range(request):
            yield number

    server = make()
    with pytest.raises(ConfigError, match="yields"):
        await server.endpoint(PATH).serve_unary_endpoint(count)
    spawn(server.endpoint(PATH).serve_endpoint(count))
    client = UnaryClient(await connect(make()))
    assert await client.complete(1) == 0
    with pytest.raises(EngineError, match="more than one response"):
        await client.complete(2)
    with pytest.raises(EngineError, match="no response"):
        await client.complete(0)


# --- bidirectional -----------------------------------------------------------------------------------------------------------


async def echo(requests: Any, context: Context) -> AsyncIterator[Any]:
    async for request in requests:
        yield f"you said {request}"
    yield "bye"


async def test_requests_and_responses_of_a_bidirectional_endpoint_take_turns(make: Any, spawn: Any) -> None:
    spawn(make().endpoint(PATH).serve_bidirectional_endpoint(echo))
    client = await connect(make())
    said: asyncio.Queue[str | None] = asyncio.Queue()

    async def words() -> AsyncIterator[str]:
        while (word := await said.get()) is not None:
            yield word

    stream = client.bidirectional(words(), annotated=False)
    for word in ("one", "two"):
        said.put_nowait(word)
        assert await asyncio.wait_for(anext(stream), 20) == f"you said {word}"
    said.put_nowait(None)  # the end of the input is no cancellation
    assert await collect(stream) == ["bye"]


async def test_a_bidirectional_stream_keeps_order_under_a_slow_reader(make: Any, spawn: Any) -> None:
    begin = asyncio.Event()

    async def total(requests: Any) -> AsyncIterator[list[int]]:
        await begin.wait()
        yield [request async for request in requests]

    sent = []

    async def numbers() -> AsyncIterator[int]:
        for number in range(300):
            sent.append(number)
            yield number

    spawn(make().endpoint(PATH).serve_bidirectional_endpoint(total))
    client = await connect(make())
    stream = client.bidirectional(numbers(), annotated=False)
    async with asyncio.timeout(20):
        while len(sent) < 64:  # noqa: ASYNC110  # the pump has no event
            await asyncio.sleep(0.005)
    assert len(sent) < 100  # the handler does not read: the sender waits
    begin.set()
    assert await collect(stream) == [list(range(300))]


async def test_a_bidirectional_stream_ends_with_what_its_input_raised(make: Any, spawn: Any) -> None:
    async def broken() -> AsyncIterator[int]:
        yield 1
        raise LookupError("no more words")

    spawn(make().endpoint(PATH).serve_bidirectional_endpoint(echo))
    stream = (await connect(make())).bidirectional(broken(), annotated=False)
    with pytest.raises(EngineError, match="no more words"):
        await collect(stream)


async def test_cancelling_a_bidirectional_stream_reaches_its_handler(make: Any, spawn: Any) -> None:
    ended = asyncio.Event()

    async def forever(requests: Any, context: Context) -> AsyncIterator[str]:
        try:
            yield "ready"
            async for _ in requests:
                pass
            await asyncio.Event().wait()
        finally:
            ended.set()

    async def silence() -> AsyncIterator[int]:
        await asyncio.Event().wait()
        yield 1

    spawn(make().endpoint(PATH).serve_bidirectional_endpoint(forever))
    stream = (await connect(make())).bidirectional(silence(), annotated=False)
    assert await anext(stream) == "ready"
    await stream.aclose()
    await asyncio.wait_for(ended.wait(), 20)


async def test_a_plain_call_of_a_bidirectional_endpoint_is_a_bad_request(make: Any, spawn: Any) -> None:
    spawn(make().endpoint(PATH).serve_bidirectional_endpoint(echo))
    with pytest.raises(InvalidRequest, match="bidirectional"):
        await collect((await connect(make())).generate("hello"))


# --- typed endpoints ---------------------------------------------------------------------------------------------------------


class Question(msgspec.Struct):
    text: str
    times: int = 1


@dataclass
class Answer:
    text: str


@dynamo_endpoint(Question, Answer)
async def repeat(request: Question) -> AsyncIterator[Any]:
    if request.text == "wrong":
        yield {"txt": 1}
    for _ in range(request.times):
        yield Answer(request.text)


async def test_structs_are_checked_in_both_directions(make: Any, spawn: Any) -> None:
    spawn(make().endpoint(PATH).serve_endpoint(repeat))
    client = await connect(make())
    expected = [{"text": "hi"}, {"text": "hi"}]
    assert await collect(client.generate({"text": "hi", "times": 2}, annotated=False)) == expected
    assert await collect(client.generate('{"text": "hi", "times": 2}', annotated=False)) == expected
    with pytest.raises(InvalidRequest, match="the request is no Question"):
        await collect(client.generate({"text": 7}))
    with pytest.raises(EngineError, match="a response is no Answer"):
        await collect(client.generate({"text": "wrong"}))


async def test_pydantic_models_are_checked_in_both_directions() -> None:
    pydantic = pytest.importorskip("pydantic")
    ask = pydantic.create_model("Ask", text=(str, ...))
    tell = pydantic.create_model("Tell", count=(int, ...))

    @dynamo_endpoint(ask, tell)
    async def count(request: Any) -> AsyncIterator[Any]:
        yield tell(count=len(request.text))
        yield {"count": "3"}
        yield {"count": "many"}

    stream = count({"text": "ab"})
    assert [await anext(stream), await anext(stream)] == [{"count": 2}, {"count": 3}]
    with pytest.raises(EngineError, match="a response is no Tell"):
        await anext(stream)
    with pytest.raises(ValueError, match="the request is no Ask"):
        await anext(count("{}"))


# --- errors, deadlines, threads ----------------------------------------------------------------------------------------------


async def test_a_handler_chooses_the_status_of_its_error(make: Any, spawn: Any) -> None:
    async def refuse(request: Any) -> AsyncIterator[Any]:
        raise HttpError(418, "x" * 10_000)
        yield

    spawn(make().endpoint(PATH).serve_endpoint(refuse))
    with pytest.raises(HttpError) as caught:
        await collect((await connect(make())).generate(None))
    assert (caught.value.status, caught.value.code, len(caught.value.message)) == (418, "418", 8192)
    assert caught.value.type == "invalid_request_error"
    with pytest.raises(ValueError, match="no HTTP status"):
        HttpError(200, "fine")


async def test_a_deadline_ends_the_handler_and_what_it_asked_of_others(make: Any, spawn: Any) -> None:
    ended = asyncio.Event()

    async def slow(request: Any, context: Context) -> AsyncIterator[int]:
        try:
            yield 1
            await asyncio.Event().wait()
        finally:
            ended.set()

    middle_runtime = make()

    async def middle(request: Any, context: Context) -> AsyncIterator[int]:
        async for item in (await connect(middle_runtime)).generate(request, annotated=False, context=context):
            yield item

    spawn(make().endpoint(PATH).serve_endpoint(slow))
    spawn(middle_runtime.endpoint("test.middle.generate").serve_endpoint(middle))
    client = await connect(make(), "test.middle.generate")
    stream = client.generate(None, annotated=False, context=Context(deadline=time.time() + 0.5))
    assert await anext(stream) == 1
    with pytest.raises(DeadlineExceeded):
        await anext(stream)
    await asyncio.wait_for(ended.wait(), 20)


async def test_a_caller_is_not_kept_beyond_the_deadline_by_a_server_that_hangs(make: Any) -> None:
    await make().endpoint(PATH).serve(lambda request, context, sink: None)
    client = await connect(make())
    with pytest.raises(DeadlineExceeded):
        await collect(client.generate(None, context=Context(deadline=time.time() + 0.05)))


async def test_plain_functions_and_generators_may_block(make: Any, spawn: Any) -> None:
    loop_thread = threading.get_ident()

    def one(request: int) -> int:
        assert threading.get_ident() != loop_thread
        return request + 1

    def several(request: int) -> Iterator[int]:
        for number in range(request):
            assert threading.get_ident() != loop_thread
            yield number

    server = make()
    spawn(server.endpoint(PATH).serve_endpoint(one))
    spawn(server.endpoint("test.backend.several").serve_endpoint(several))
    caller = make()
    assert await collect((await connect(caller)).generate(1, annotated=False)) == [2]
    assert await collect((await connect(caller, "test.backend.several")).generate(3, annotated=False)) == [0, 1, 2]


# --- context -----------------------------------------------------------------------------------------------------------------


def test_a_context_reads_its_trace_headers_in_both_spellings() -> None:
    trace, span = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    context = Context(trace_headers={"traceparent": f"00-{trace}-{span}-01"})
    assert (context.trace_id, context.parent_span_id) == (trace, span)
    assert context.trace_headers() == {**context.trace_headers}
    assert context.child().trace_id == trace
    assert (Context().trace_id, Context(trace_headers={"traceparent": "x"}).parent_span_id) == (None, None)


# --- registration and health -------------------------------------------------------------------------------------------------


async def gone(client: Any) -> None:
    async with asyncio.timeout(20):
        while client.instance_ids():  # noqa: ASYNC110  # discovery tells in its own time
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("how", ["instance", "runtime"])
async def test_an_instance_that_sleeps_is_out_of_discovery_and_finishes_what_runs(make: Any, spawn: Any, how: str) -> None:
    go_on = asyncio.Event()

    async def wait(request: Any) -> AsyncIterator[str]:
        yield "begun"
        await go_on.wait()
        yield "done"

    server = make()
    endpoint = server.endpoint(PATH)
    spawn(endpoint.serve_endpoint(wait))
    client = await connect(make())
    stream = client.generate(None, annotated=False)
    assert await anext(stream) == "begun"
    await (endpoint.unregister_endpoint_instance() if how == "instance" else server.sleep())
    await gone(client)
    go_on.set()
    assert await collect(stream) == ["done"]
    await (endpoint.register_endpoint_instance() if how == "instance" else server.wake())
    assert await client.wait_for_instances(20) == [server.instance_id]


async def test_only_what_is_served_can_be_registered(make: Any) -> None:
    with pytest.raises(ConfigError, match="does not serve"):
        await make().endpoint(PATH).unregister_endpoint_instance()


async def test_the_timeout_names_the_nearest_endpoints_alive(make: Any, spawn: Any) -> None:
    spawn(make().endpoint("production.backend.generate").serve_endpoint(echo))
    caller = make()
    await connect(caller, "production.backend.generate")
    client = await caller.endpoint("prodution.backend.generate").client()
    with pytest.raises(NoInstances, match=r"prodution.*alive are production\.backend\.generate"):
        await client.wait_for_instances(0.05)


# --- metrics -----------------------------------------------------------------------------------------------------------------


async def test_metrics_labels_stand_on_the_series_of_their_endpoint(make: Any, spawn: Any) -> None:
    async def work(request: Any) -> AsyncIterator[int]:
        if request is None:
            raise LookupError("nothing to do")
        yield 1

    server = make()
    spawn(server.endpoint(PATH).serve_endpoint(work, metrics_labels=[("model", "m"), ("stage", "a")]))
    spawn(server.endpoint("test.backend.other").serve_endpoint(work))
    client = await connect(make())
    await collect(client.generate(1))
    with pytest.raises(EngineError):
        await collect(client.generate(None))
    (family,) = [f for f in read_families(server.metrics.text()) if f.name == "dynamo_component_requests"]
    own = {"dynamo_namespace": "test", "dynamo_component": "backend"}
    told = {sample.labels["dynamo_endpoint"]: sample for sample in family.samples}
    assert told["generate"].labels == {**own, "dynamo_endpoint": "generate", "model": "m", "stage": "a"}
    assert (told["generate"].value, told["other"].value) == (2, 0)
    text = server.metrics.text().decode()
    assert 'error_type="EngineError"' in text
    assert text.count('le="+Inf"') == 2


async def test_a_label_that_is_there_already_is_refused(make: Any) -> None:
    endpoint = make().endpoint(PATH)
    with pytest.raises(ConfigError, match="dynamo_namespace would stand twice"):
        await endpoint.serve_endpoint(echo, metrics_labels=[("dynamo_namespace", "x")])


async def test_a_callback_adds_series_and_cannot_repeat_one(make: Any, caplog: pytest.LogCaptureFixture) -> None:
    runtime = make()
    metrics = runtime.endpoint(PATH).metrics
    metrics.register_prometheus_expfmt_callback(lambda: "# TYPE my_queue gauge\nmy_queue 3")
    metrics.register_prometheus_expfmt_callback(lambda: "# TYPE my_queue gauge\nmy_queue 4")
    metrics.register_prometheus_expfmt_callback(lambda: 1 / 0)  # type: ignore[arg-type,return-value]
    text = runtime.metrics.text().decode()
    assert "my_queue 3" in text
    assert "my_queue 4" not in text
    assert "my_queue would be told twice" in caplog.text
    assert "a metrics callback failed" in caplog.text
