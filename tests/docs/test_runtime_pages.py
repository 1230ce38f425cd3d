"""Every Python snippet of the pages on the runtime and on testing runs, and what troubleshooting quotes is what is said."""

from __future__ import annotations

import ast
import asyncio
import inspect
import io
import logging
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from dynamo_core.errors import ConfigError, NoInstances
from dynamo_core.runtime import CanarySettings, Context
from dynamo_core.runtime.logging import configure_dynamo_logging
from dynamo_core.testing import InprocCluster

DOCS = Path(__file__).parents[2] / "docs"
PATH = "production.backend.generate"


def page(name: str) -> str:
    """The page as it is written."""
    return (DOCS / f"{name}.md").read_text()


def says(text: str) -> bool:
    """Whether troubleshooting quotes it, wherever its lines break."""
    return " ".join(text.split()) in " ".join(page("troubleshooting").split())


async def run(name: str, names: dict[str, Any]) -> dict[str, Any]:
    """All snippets of a page, one after the other, in one namespace; they may await."""
    for number, source in enumerate(re.findall(r"```python\n(.*?)```", page(name), re.DOTALL)):
        code = compile(source, f"{name}.md[{number}]", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        result = eval(code, names)
        if inspect.isawaitable(result):
            async with asyncio.timeout(30):
                await result
    return names


@pytest.fixture
async def cluster() -> AsyncIterator[InprocCluster]:
    async with InprocCluster() as made:
        yield made


async def until(condition: Any) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110  # discovery and canaries go by time
            await asyncio.sleep(0.01)


async def end(*tasks: asyncio.Task[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_the_snippets_on_the_runtime_run(
    cluster: InprocCluster, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DYN_FILE_KV", str(tmp_path / "kv"))
    monkeypatch.chdir(tmp_path)
    names = {"runtime": await cluster.runtime(), "caller": await cluster.runtime()}
    names = await run("runtime", {"asyncio": asyncio, "MODEL_FOLDER": str(tiny_model), "__name__": "page", **names})
    await end(names["serving"], *names["tasks"])


async def test_the_snippets_on_testing_run() -> None:
    names = await run("testing", {"asyncio": asyncio, "__name__": "page"})
    for suite in ("TestMyEngine", "TestMyRouter"):
        tests = [name for name in dir(names[suite]) if name.startswith("test_")]
        assert len(tests) > 5
        for name in tests:
            outcome = getattr(names[suite](), name)()
            if inspect.isawaitable(outcome):
                await outcome


# --- troubleshooting ---------------------------------------------------------------------------------------------------------


def test_trace_logging_of_one_module() -> None:
    assert says("DYN_LOG=info,dynamo_core.runtime=trace")
    root = logging.getLogger()
    before = root.handlers[:], root.level
    stream = io.StringIO()
    try:
        configure_dynamo_logging("info,dynamo_core.runtime=trace", stream=stream)
        logging.getLogger("dynamo_core.runtime.client").log(5, "each probe")
        logging.getLogger("dynamo_core.serving.dispatch").debug("each leg")
        assert "TRACE dynamo_core.runtime.client: each probe" in stream.getvalue()
        assert "each leg" not in stream.getvalue()
    finally:
        configure_dynamo_logging("warning", stream=io.StringIO())
        root.handlers[:], root.level = before
        logging.captureWarnings(capture=False)


async def hello(request: Any) -> AsyncIterator[str]:
    yield "hello"


async def test_a_wrong_namespace(cluster: InprocCluster) -> None:
    serving = asyncio.create_task((await cluster.runtime()).endpoint(PATH).serve_endpoint(hello))
    caller = await cluster.runtime()
    await (await caller.endpoint(PATH).client()).wait_for_instances(10)
    client = await caller.endpoint("prodution.backend.generate").client()
    with pytest.raises(NoInstances) as caught:
        await client.wait_for_instances(0.05)
    assert says(caught.value.message.replace("0.05 s", "5 s"))
    async with InprocCluster() as elsewhere:
        client = await (await elsewhere.runtime()).endpoint(PATH).client()
        with pytest.raises(NoInstances) as caught:
            await client.wait_for_instances(0.01)
        assert says(caught.value.message.partition("; ")[2])
    await end(serving)


async def test_an_instance_of_another_host_without_an_address(cluster: InprocCluster, caplog: pytest.LogCaptureFixture) -> None:
    server, caller = await cluster.runtime(), await cluster.runtime()
    record = {"instance_id": 7, "namespace": "production", "component": "backend", "endpoint": "generate", "host": "elsewhere"}
    record |= {"address": "unix:/tmp/nowhere.sock", "request_plane": caller.request_plane_name}
    await server.discovery.put("instances/production/backend/generate/7", msgspec.json.encode(record))
    client = await caller.endpoint(PATH).client()
    await until(lambda: "it listens on a Unix socket of host elsewhere; set DYN_TCP_RPC_HOST there" in caplog.text)
    with pytest.raises(NoInstances, match=r"1 listed in discovery cannot be reached, at unix:/tmp/nowhere\.sock"):
        await client.wait_for_instances(0.05)
    assert says("it listens on a Unix socket of host")
    assert says("1 listed in discovery cannot be reached, at tcp:")


@pytest.mark.parametrize("passed_on", [True, False])
async def test_a_hop_that_drops_the_context(cluster: InprocCluster, passed_on: bool) -> None:
    contexts: list[Context] = []

    async def backend(request: Any, context: Context) -> AsyncIterator[int]:
        contexts.append(context)
        for number in range(1000):
            yield number
            await asyncio.sleep(0.001)
            if context.is_stopped():
                return

    async def middle(request: Any, context: Context) -> AsyncIterator[int]:
        async for item in client.generate(request, annotated=False, context=context if passed_on else None):
            yield item

    server, hop, caller = [await cluster.runtime() for _ in range(3)]
    tasks = [asyncio.create_task(server.endpoint("a.backend.generate").serve_endpoint(backend))]
    client = await hop.endpoint("a.backend.generate").client()
    await client.wait_for_instances(10)
    tasks.append(asyncio.create_task(hop.endpoint("a.middle.generate").serve_endpoint(middle)))
    front = await caller.endpoint("a.middle.generate").client()
    await front.wait_for_instances(10)
    context = Context()
    stream = front.generate(None, annotated=False, context=context)
    await anext(stream)
    context.stop_generating()
    if passed_on:
        await until(lambda: contexts[0].is_stopped())
    else:
        for _ in range(20):
            await anext(stream)
        assert not contexts[0].is_stopped()
    await stream.aclose()
    await end(*tasks)


async def test_an_endpoint_that_fails_its_canary(cluster: InprocCluster, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    works = asyncio.Event()

    async def slow(request: Any) -> AsyncIterator[int]:
        await works.wait()
        yield 1

    server = await cluster.runtime(canary=CanarySettings(wait=0.02, timeout=0.05))
    serving = asyncio.create_task(server.endpoint(PATH).serve_endpoint(slow, health_check_payload={"canary": True}))
    await until(lambda: "failed its canary and leaves discovery until it answers" in caplog.text)
    works.set()
    await until(lambda: "answers its canary again and is back in discovery" in caplog.text)
    assert says("failed its canary and leaves discovery until it answers")
    assert says("answers its canary again and is back in discovery")
    await end(serving)


async def test_duplicate_metric_series(cluster: InprocCluster, caplog: pytest.LogCaptureFixture) -> None:
    runtime = await cluster.runtime()
    with pytest.raises(ConfigError, match="would stand twice on each series"):
        await runtime.endpoint(PATH).serve_endpoint(hello, metrics_labels=[("dynamo_endpoint", "x")])
    runtime.endpoint(PATH).metrics.register_prometheus_expfmt_callback(lambda: "# TYPE dynamo_component_requests_total counter\n")
    runtime.metrics.text()
    assert "would be told twice" in caplog.text
    assert says("would stand twice on each series")
    assert says("would be told twice")
