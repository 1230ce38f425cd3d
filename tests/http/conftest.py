"""A real server on loopback in front of a model whose generations the test plays."""

from __future__ import annotations

import asyncio
import json
import socket
from array import array
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from time import monotonic
from types import SimpleNamespace
from typing import Any

import httpx
import msgspec
import pytest
from openai import AsyncOpenAI

from dynamo_core.config import Settings
from dynamo_core.contracts import Context, ModelCard, RequestSummary
from dynamo_core.errors import ContextLengthExceeded, ModelNotFound
from dynamo_core.http.admin import Health
from dynamo_core.http.app import create_app
from dynamo_core.http.observe import FrontendMetrics
from dynamo_core.http.server import HttpServer
from dynamo_core.plugins import Compiled, Observer, activate, observation
from dynamo_core.serving.output import ChoiceOutput, GenerationRequest, OutputSink, Usage
from dynamo_core.serving.prompt_encoder import PromptEncoder
from dynamo_core.serving.record import RequestRecord


@dataclass
class Played:
    """One generation; what a real one does to its sink and record, at the test's command."""

    request: GenerationRequest
    sink: OutputSink
    record: RequestRecord
    context: Context
    tokens: list[int] = field(default_factory=list)
    pauses: int = 0
    resumes: int = 0

    def pause(self) -> None:
        self.pauses += 1

    def resume(self) -> None:
        self.resumes += 1

    def usage(self) -> Usage:
        return Usage(self.record.prompt_tokens, len(self.tokens), 2)

    def text(self, text: str, index: int = 0) -> None:
        self.token()
        self.sink.text(index, text)

    def token(self) -> None:
        self.tokens.append(0)
        self.record.last_token = monotonic()
        self.record.first_token = self.record.first_token or self.record.last_token

    def output(self, output: ChoiceOutput, index: int = 0) -> None:
        self.token()
        self.sink.output(index, output)

    def flush(self) -> None:
        self.sink.flush()

    def finish(self, reason: Any = "stop", index: int = 0, **more: Any) -> None:
        self.sink.output(index, ChoiceOutput(finish_reason=reason, **more))
        self.record.finish_reasons.append(reason)

    def complete(self) -> None:
        usage = self.usage()
        self.record.output_tokens, self.record.cached_tokens = usage.output_tokens, usage.cached_tokens
        self.sink.completed(usage)

    def fail(self, error: Any) -> None:
        self.record.output_tokens = len(self.tokens)
        self.sink.failed(error)

    def say(self, *texts: str) -> None:
        """All choices say the same, each text in a burst of its own, and end."""
        choices = range(len(self.request.prompts) * self.request.n)
        for text in texts:
            for index in choices:
                self.text(text, index)
            self.flush()
        for index in choices:
            self.finish(index=index)
        self.complete()


class PlayedModel:
    """Stands for :class:`~dynamo_core.serving.served_model.ServedModel`: tokens are characters."""

    def __init__(self, name: str, context_length: int = 1000, **card: Any) -> None:
        self.name = name
        self.card = ModelCard(name=name, path="/", context_length=context_length, created=1700000000, **card)
        self.created = self.card.created
        self.ready = True
        self.workers: dict[int, Any] = {}

        def pack(text: str, special: bool = True) -> array[int]:
            return array("I", [1] * special + [ord(character) for character in text])

        self.tokenizer: Any = SimpleNamespace(
            vocab_size=1_114_112,
            decode=lambda ids, skip=True: "".join(map(chr, ids)),
            pack=pack,
            pack_all=lambda texts, special=True: [pack(text, special) for text in texts],
            frame=((1,), ()),
            loop_characters=10_000,
            recall=lambda text, most: None,
        )
        self.prompt_encoder = PromptEncoder(self.tokenizer)
        self.rendered: list[dict[str, Any]] = []
        self.generations: asyncio.Queue[Played] = asyncio.Queue()
        self.script: Callable[[Played], None] | None = None

    def render_chat(self, messages: list[dict[str, Any]], **options: Any) -> str:
        self.rendered.append(options)
        return "".join(f"<{message['role']}>{message.get('content')}" for message in messages)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> Sequence[int]:
        return self.prompt_encoder.encode(text, add_special_tokens)

    def limit(self, prompt_length: int, max_tokens: int | None, *, param: str = "messages") -> int:
        left = self.card.context_length - prompt_length
        if left <= 0:
            raise ContextLengthExceeded("The prompt is too long.", param=param)
        return left if max_tokens is None else min(max_tokens, left)

    def generate(self, request: GenerationRequest, sink: OutputSink, record: RequestRecord, context: Context) -> Played:
        played = Played(request, sink, record, context)
        record.prompt_tokens = sum(map(len, request.prompts))
        record.worker_ids.append(0xAB)
        self.generations.put_nowait(played)
        if self.script is not None:
            asyncio.get_running_loop().call_soon(self.script, played)
        return played


class PlayedManager:
    def __init__(self, *models: PlayedModel) -> None:
        self.known = {model.name: model for model in models}
        self.error: Exception | None = None
        self.engine_metrics: dict[int, bytes] = {}

    def get(self, name: str) -> PlayedModel:
        if self.error is not None:
            raise self.error
        for model in self.known.values():
            if name == model.name or name in model.card.aliases:
                return model
        raise ModelNotFound(f"The model {name!r} does not exist.", param="model")

    def models(self) -> list[PlayedModel]:
        return list(self.known.values())

    async def worker_metrics(self) -> dict[int, bytes]:
        return self.engine_metrics


def post(path: str, body: Any, *headers: str) -> bytes:
    """A whole HTTP request."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"POST {path} HTTP/1.1", "Host: x", "Content-Type: application/json", f"Content-Length: {len(data)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + data


@dataclass
class Running:
    """A server and its clients."""

    url: str
    port: int
    model: PlayedModel
    manager: PlayedManager
    health: Health
    metrics: FrontendMetrics
    http: httpx.AsyncClient
    openai: AsyncOpenAI
    summaries: asyncio.Queue[RequestSummary]
    server: HttpServer
    writers: list[asyncio.StreamWriter] = field(default_factory=list)

    async def chat(self, *, headers: dict[str, str] | None = None, **fields: Any) -> httpx.Response:
        body = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], **fields}
        return await self.http.post("/v1/chat/completions", json=body, headers=headers)

    async def complete(self, **fields: Any) -> httpx.Response:
        return await self.http.post("/v1/completions", json={"model": "m", "prompt": "Once", **fields})

    post = staticmethod(post)

    async def raw(self, request: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        self.writers.append(writer)
        writer.write(request)
        return reader, writer


Serve = Callable[..., Awaitable[Running]]


def events(text: str) -> list[Any]:
    """The data of server-sent events, decoded but for ``[DONE]``."""
    parts = text.split("\n\n")
    assert parts[-1] == "", "an event is not closed"
    assert all(part.startswith("data: ") for part in parts[:-1])
    return [part[6:] if part == "data: [DONE]" else json.loads(part[6:]) for part in parts[:-1]]


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """Start a server: ``await serve()``, with settings' fields, and ``compiled`` to replace parts of the compiled plugins."""
    started: list[Running] = []

    async def start(
        *, compiled: dict[str, Any] | None = None, models: Sequence[PlayedModel] = (), grace: float = 1, **settings: Any
    ) -> Running:
        models = models or (PlayedModel("m", aliases=("alias",)),)
        manager: Any = PlayedManager(*models)
        summaries: asyncio.Queue[RequestSummary] = asyncio.Queue()
        plugins: Compiled = activate([])
        told = Observer("test", "dynamo_request_finished", summaries.put_nowait)
        plugins = msgspec.structs.replace(
            plugins, **{"observers": (told,), "finished": observation([told], plugins.faults), **(compiled or {})}
        )
        health, metrics = Health(manager), FrontendMetrics()
        app = create_app(manager, plugins, Settings(**settings), metrics, health=health, direct=True)
        sock = socket.create_server(("127.0.0.1", 0))
        server = HttpServer(app, sock, grace=grace)
        await server.start()
        url = f"http://127.0.0.1:{server.port}"
        client = httpx.AsyncClient(base_url=url, timeout=30, trust_env=False, verify=False)
        openai = AsyncOpenAI(
            base_url=f"{url}/v1", api_key="k", max_retries=0, http_client=httpx.AsyncClient(trust_env=False, verify=False)
        )
        running = Running(url, server.port, models[0], manager, health, metrics, client, openai, summaries, server)
        started.append(running)
        return running

    yield start
    for running in started:
        await running.http.aclose()
        await running.openai.close()
        for writer in running.writers:
            writer.close()
        await running.server.stop()


@pytest.fixture
async def running(serve: Serve) -> Running:
    return await serve()


@pytest.fixture
def sse() -> Callable[[str], list[Any]]:
    return events
