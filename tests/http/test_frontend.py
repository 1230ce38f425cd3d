"""A whole frontend, from discovery to the client, with a real worker around the echo engine in the same process."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI

from dynamo_core.config import Settings
from dynamo_core.http.frontend import run_frontend
from dynamo_core.plugins import activate
from dynamo_core.runtime import DistributedRuntime
from dynamo_core.serving.worker import EngineWorker


class Site:
    """A frontend and what can be asked of it."""

    def __init__(self, port: int, client: httpx.AsyncClient, openai: AsyncOpenAI, worker: EngineWorker) -> None:
        self.port = port
        self.http = client
        self.openai = openai
        self.worker = worker
        self.stop = asyncio.Event()
        self.frontend: asyncio.Task[int]

    async def ready(self) -> None:
        while (await self.http.get("/ready")).status_code != 200:  # noqa: ASYNC110 - discovery is followed by polling
            await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def site_of(settings: Settings) -> AsyncIterator[Site]:
    compiled = activate(["echo", "tcp", "request-plane", "file", "round-robin"])
    store = {"file_kv": settings.file_kv, "compiled": compiled}
    sock = socket.create_server(("127.0.0.1", 0))
    port = sock.getsockname()[1]
    async with contextlib.AsyncExitStack() as stack:
        runtime = await stack.enter_async_context(DistributedRuntime(None, "file", "tcp", **store))
        worker = EngineWorker(runtime, compiled.engine("echo"), settings)
        stack.push_async_callback(worker.stop)
        await worker.start()
        client = await stack.enter_async_context(
            httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False, verify=False, timeout=30)
        )
        openai = AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="k", max_retries=0, http_client=client)
        site = Site(port, client, openai, worker)
        listening = asyncio.Event()
        site.frontend = asyncio.create_task(
            run_frontend(settings, compiled, name="f", sock=sock, on_ready=lambda _: listening.set(), stop=site.stop)
        )
        await listening.wait()
        await site.ready()
        yield site
        site.stop.set()
        assert await site.frontend == 0


@pytest.fixture
async def site(tiny_model: Path, tmp_path: Path) -> AsyncIterator[Site]:
    settings = Settings(
        engine="echo", model=str(tiny_model), model_name="tiny", file_kv=str(tmp_path / "kv"), graceful_shutdown_secs=5
    )
    async with site_of(settings) as site:
        yield site


async def test_text_comes_back_whole_streamed_or_not(site: Site) -> None:
    text = "the cat sat on the mat"
    unary = await site.openai.completions.create(model="tiny", prompt=text, max_tokens=50)
    assert text in unary.choices[0].text
    chunks = [part async for part in await site.openai.completions.create(model="tiny", prompt=text, max_tokens=50, stream=True)]
    assert "".join(chunk.choices[0].text for chunk in chunks) == unary.choices[0].text


async def test_chat_is_rendered_with_the_model_s_template(site: Site) -> None:
    messages: Any = [{"role": "user", "content": "hello"}]
    stream = await site.openai.chat.completions.create(
        model="tiny", messages=messages, n=2, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    texts = ["", ""]
    for chunk in chunks[:-1]:
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert texts[0] == texts[1]
    assert "hello" in texts[0]
    assert chunks[-1].usage.completion_tokens == 2 * chunks[-1].usage.prompt_tokens


async def test_the_model_s_own_limits_hold(site: Site) -> None:
    answer = await site.http.post("/v1/completions", json={"model": "tiny", "prompt": [5] * 1_000_000})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "context_length_exceeded")
    answer = await site.http.post("/v1/completions", json={"model": "tiny", "prompt": [2**31]})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "prompt")


async def test_a_model_that_lost_its_workers_is_a_503(site: Site) -> None:
    await site.worker.stop()
    while (await site.http.get("/ready")).status_code == 200:  # noqa: ASYNC110 - discovery is followed by polling
        await asyncio.sleep(0.02)
    answer = await site.http.post("/v1/completions", json={"model": "tiny", "prompt": "x"})
    assert answer.status_code == 503
    assert answer.headers["retry-after"]
    assert answer.json()["error"]["code"] == "service_unavailable"
    assert (await site.http.get("/health")).status_code == 200
    assert (await site.http.post("/v1/completions", json={"model": "nobody", "prompt": "x"})).status_code == 404


async def test_a_client_that_leaves_stops_its_sequence_at_the_worker(tiny_model: Path, tmp_path: Path) -> None:
    settings = Settings(
        engine="echo", engine_args={"delay_ms": 5}, model=str(tiny_model), model_name="tiny", file_kv=str(tmp_path / "kv")
    )
    async with site_of(settings) as site:
        body = {"model": "tiny", "prompt": "word " * 100, "max_tokens": 200, "stream": True}
        async with site.http.stream("POST", "/v1/completions", json=body) as answer:
            async for _ in answer.aiter_raw():
                break
            assert site.worker.running == 1
        while site.worker.running:  # noqa: ASYNC110 - the engine says nothing
            await asyncio.sleep(0.005)
        metrics = (await site.http.get("/metrics")).text
        assert 'error_type="cancelled"' in metrics


async def test_a_running_stream_outlives_sigterm(tiny_model: Path, tmp_path: Path) -> None:
    settings = Settings(
        engine="echo", engine_args={"delay_ms": 2}, model=str(tiny_model), model_name="tiny", file_kv=str(tmp_path / "kv")
    )
    async with site_of(settings) as site:
        body = {"model": "tiny", "prompt": "word " * 50, "max_tokens": 100, "stream": True}
        async with site.http.stream("POST", "/v1/completions", json=body) as answer:
            received = b""
            async for part in answer.aiter_raw():
                site.stop.set()
                received += part
        assert received.endswith(b"data: [DONE]\n\n")
        assert b'"finish_reason":"length"' in received or b'"finish_reason":"stop"' in received
