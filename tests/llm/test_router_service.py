"""A router as a component of its own, asked by programs and by frontends that share it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from dynamo_core.builtins.remote import Remote, RemoteConfig
from dynamo_core.config import Settings
from dynamo_core.contracts import Context, RouteRequest, StopConditions
from dynamo_core.errors import InvalidRequest, NoInstances, ProtocolError
from dynamo_core.llm import ModelInput, ModelType, register_model
from dynamo_core.llm import router_service as module
from dynamo_core.llm.router_service import RouterService
from dynamo_core.plugins import activate
from dynamo_core.runtime import UnaryClient
from dynamo_core.serving.manager import ModelManager
from dynamo_core.serving.output import GenerationRequest
from dynamo_core.serving.record import RequestRecord
from dynamo_core.serving.session_affinity import SessionAffinity
from dynamo_core.testing import InprocCluster

PATH = "dynamo.backend.generate"


class Worker:
    """Answers when it is told to."""

    def __init__(self) -> None:
        self.id = 0
        self.running = 0
        self.go = asyncio.Event()
        self.go.set()

    async def generate(self, request: dict[str, Any], context: Context) -> AsyncIterator[Any]:
        self.running += 1
        try:
            yield {"token_ids": [request["token_ids"][0]]}
            await self.go.wait()
            yield {"finish_reason": "stop", "token_ids": []}
        finally:
            self.running -= 1


class Sink:
    def __init__(self) -> None:
        self.ended: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def text(self, index: int, text: str) -> None: ...

    def output(self, index: int, output: Any) -> None: ...

    def flush(self) -> None: ...

    def completed(self, usage: Any) -> None:
        self.ended.set_result(usage)

    def failed(self, error: Any) -> None:
        self.ended.set_exception(error)


class Stage:
    def __init__(self, cluster: InprocCluster, folder: Path, stack: contextlib.AsyncExitStack) -> None:
        self.cluster = cluster
        self.folder = folder
        self.stack = stack
        self.compiled = activate(("kv-router", "remote"))
        self.service: Any = None
        self.asker: Any = None

    async def worker(self) -> Worker:
        runtime = await self.cluster.runtime()
        worker, endpoint = Worker(), runtime.endpoint(PATH)
        worker.id = runtime.instance_id
        kind = ModelType.Chat | ModelType.Completions
        await register_model(ModelInput.Tokens, kind, endpoint, str(self.folder), "m", kv_cache_block_size=16)
        task = asyncio.create_task(endpoint.serve_endpoint(worker.generate))
        self.stack.push_async_callback(_cancelled, task)
        return worker

    async def router(self, **options: Any) -> RouterService:
        runtime = await self.cluster.runtime()
        provider = self.compiled.router("kv-router")
        service = RouterService(runtime, provider, self.compiled.faults, endpoint=PATH, component="dynamo.router", **options)
        self.stack.push_async_callback(service.stop)
        await service.start()
        return service

    async def frontend(self, **settings: Any) -> ModelManager:
        runtime = await self.cluster.runtime()
        manager = ModelManager(runtime, self.compiled, self.compiled.router("remote"), Settings(**settings))
        self.stack.push_async_callback(manager.stop)
        await manager.start()
        await until(lambda: manager.models() and manager.models()[0].ready)
        return manager

    async def ask(self, name: str, request: Any) -> Any:
        client = await (await self.cluster.runtime()).endpoint(f"dynamo.router.{name}").client()
        await client.wait_for_instances(5)
        return await UnaryClient(client).complete(request)


async def _cancelled(task: asyncio.Task[Any]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def send(manager: ModelManager, prompt: list[int], **more: Any) -> tuple[Sink, RequestRecord, Context]:
    sink, record, context = Sink(), RequestRecord("r", "completions"), Context()
    request = GenerationRequest(
        id="r", endpoint="completions", prompts=(prompt,), conditions=StopConditions(max_tokens=5), **more
    )
    manager.get("m").generate(request, sink, record, context)
    return sink, record, context


async def until(condition: Any) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110  # discovery and events tell in their own time
            await asyncio.sleep(0.005)


@pytest.fixture
async def stage(tiny_model: Path) -> AsyncIterator[Stage]:
    async with InprocCluster() as cluster, contextlib.AsyncExitStack() as stack:
        yield Stage(cluster, tiny_model, stack)


async def test_it_answers_in_dynamos_shapes(stage: Stage) -> None:
    workers = [await stage.worker(), await stage.worker()]
    service = await stage.router()
    prompt = list(range(100, 148))
    await until(lambda: service._workers.dispatcher and len(service._workers.dispatcher.workers) == 2)
    best = await stage.ask("best_worker_id", prompt)
    assert best in {worker.id for worker in workers}
    assert await stage.ask("best_worker_id", prompt) == best, "asking books nothing"
    booked = await stage.ask("best_worker_id", {"token_ids": prompt, "request_id": "a"})
    assert booked == {"worker_id": best, "dp_rank": 0, "overlap_blocks": 0}
    asked = await stage.ask("best_worker_id", {"token_ids": list(range(500, 560))})
    assert asked.keys() == booked.keys()
    state = service._workers.dispatcher.router.router.state
    assert state()["requests"] == 1
    assert await stage.ask("mark_prefill_complete", {"request_id": "a"}) == {"status": "ok"}
    assert await stage.ask("free", "a") == {"status": "ok"}
    assert state()["requests"] == 0
    scores = await stage.ask("get_overlap_scores", {"token_ids": prompt})
    assert (scores["block_size"], scores["num_blocks"], len(scores["workers"])) == (16, 3, 2)
    assert {row["worker_id"]: row["device_blocks"] for row in scores["workers"] if row["device_blocks"]} == {best: 3}
    client = await (await stage.cluster.runtime()).endpoint("dynamo.router.generate").client()
    await client.wait_for_instances(5)
    request = {"token_ids": prompt, "model": "m", "stop_conditions": {"max_tokens": 3}}
    chunks = [chunk async for chunk in client.round_robin(request, annotated=False)]
    assert chunks[0]["token_ids"] == [100]
    assert chunks[-1]["finish_reason"] == "stop"
    for name, wrong in (("generate", {"tokens": []}), ("best_worker_id", "x"), ("free", 7), ("get_overlap_scores", {})):
        with pytest.raises(InvalidRequest):
            await stage.ask(name, wrong)


async def test_what_is_never_freed_is_forgotten(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_EXPIRY_SECONDS", 0.05)
    await stage.worker()
    service = await stage.router()
    await stage.ask("best_worker_id", {"token_ids": [1, 2], "request_id": "a"})
    await until(lambda: service._workers.dispatcher.router.router.state()["requests"] == 0)
    await stage.ask("best_worker_id", {"token_ids": [1, 2], "request_id": "a"})


async def test_frontends_share_its_view(stage: Stage) -> None:
    workers = [await stage.worker() for _ in range(4)]
    service = await stage.router()
    one, two = await stage.frontend(), await stage.frontend()
    for worker in workers:
        worker.go.clear()
    running = [send(one if number % 4 else two, list(range(number * 100, number * 100 + 40))) for number in range(16)]
    await until(lambda: sum(worker.running for worker in workers) == 16)
    assert [worker.running for worker in workers] == [4, 4, 4, 4]
    state = service._workers.dispatcher.router.router.state
    await until(lambda: [account["prefilling"] for account in state()["workers"].values()] == [0] * 4)
    assert state()["requests"] == len(service.reservations) == 16
    running[0][2].kill()
    for worker in workers:
        worker.go.set()
    for sink, _, context in running[1:]:
        assert not context.is_killed()
        await sink.ended
    await until(lambda: state()["requests"] == len(service.reservations) == 0)


async def test_a_frontend_that_dies_takes_its_requests_along(stage: Stage) -> None:
    worker = await stage.worker()
    service = await stage.router()
    one = await stage.frontend()
    worker.go.clear()
    send(one, [1, 2, 3])
    await until(lambda: len(service.reservations) == 1)
    await one._runtime.request_plane.close()
    await until(lambda: not len(service.reservations))
    assert service._workers.dispatcher.router.router.state()["requests"] == 0


async def test_without_a_router_requests_go_to_the_least_loaded_and_with_one_again_to_its_choice(stage: Stage) -> None:
    workers = [await stage.worker(), await stage.worker()]
    one = await stage.frontend()
    records = []
    for number in range(4):
        sink, record, _ = send(one, [number, 7])
        await sink.ended
        records.append(record)
    assert all(len(record.worker_ids) == 1 for record in records)
    service = await stage.router()
    await until(lambda: service._workers.dispatcher and len(service._workers.dispatcher.workers) == 2)
    await until(lambda: one.get("m").router.router._clients.place.instance_ids())
    for worker in workers:
        worker.go.clear()
    sink, _, _ = send(one, [9, 9])
    await until(lambda: len(service.reservations) == 1)
    await service.stop()
    for worker in workers:
        worker.go.set()
    await sink.ended
    sink, _, _ = send(one, [9, 9])
    await sink.ended


async def test_sessions_hold_across_frontends_that_share_a_router(stage: Stage) -> None:
    for _ in range(4):
        await stage.worker()
    service = await stage.router(sessions=SessionAffinity(60, "hard"))
    frontends = [await stage.frontend(), await stage.frontend()]
    await until(lambda: len(service._workers.dispatcher.workers) == 4)
    seen = set()
    for number in range(8):
        sink, record, _ = send(frontends[number % 2], list(range(number * 100, number * 100 + 32)), session="s")
        await sink.ended
        seen |= set(record.worker_ids)
    assert len(seen) == 1


async def test_a_question_reaches_the_router_and_books_nothing(stage: Stage) -> None:
    worker = await stage.worker()
    one = await stage.frontend()
    request = GenerationRequest(id="q", endpoint="completions", prompts=([1, 2, 3],))
    assert (await one.get("m").query(request)).explain == {"router": "least loaded"}
    service = await stage.router()
    await until(lambda: service._workers.dispatcher and service._workers.dispatcher.workers)
    await until(lambda: one.get("m").router.router._clients.query.instance_ids())
    route = await one.get("m").query(request)
    assert route.worker_id == worker.id
    assert route.explain["best"][0]["worker"] == worker.id
    assert not len(service.reservations)
    assert service._workers.dispatcher.router.router.state()["requests"] == 0


async def test_a_worker_that_only_the_router_knows_is_asked_for_no_longer(stage: Stage) -> None:
    workers = [await stage.worker(), await stage.worker()]
    await stage.router()
    runtime = await stage.cluster.runtime()
    woken = asyncio.Event()
    context: Any = type("C", (), {"runtime": runtime, "wake": staticmethod(woken.set)})
    remote = Remote(RemoteConfig(component="dynamo.router"), context)
    request = RouteRequest(id="r", token_ids=[1, 2, 3])
    offered: Any = {workers[1].id: object()}
    async with asyncio.timeout(10):
        while True:
            (decision,) = remote.select([request], offered)
            if getattr(decision, "worker_id", None) == workers[1].id:
                break
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.01):
                    await woken.wait()
            woken.clear()
    remote.finished(request, workers[1].id, "completed")
    await asyncio.sleep(0)
    await remote.close()


async def test_what_is_no_request_is_refused(stage: Stage) -> None:
    await stage.router()
    with pytest.raises(NoInstances):
        await stage.ask("place", {"number": 1, "id": "a", "token_ids": [1]})
    await stage.worker()
    runtime = await stage.cluster.runtime()
    client = await runtime.endpoint("dynamo.router.place").client()
    await client.wait_for_instances(5)
    await asyncio.sleep(0.05)
    with pytest.raises(ProtocolError):
        [item async for item in client.round_robin({"number": "x"}, annotated=False)]
    progress = await runtime.endpoint("dynamo.router.progress").client()
    with pytest.raises(ProtocolError):
        [item async for item in progress.round_robin([1], annotated=False)]
    assert [item async for item in progress.round_robin({"answered": [5], "ended": [[6, "failed"]]}, annotated=False)] == []
