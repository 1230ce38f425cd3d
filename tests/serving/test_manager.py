"""Engine workers and a model manager that find each other through discovery, in one process and over sockets."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from dynamo_core.config import Settings
from dynamo_core.contracts import Context, EngineRequest, KvRemoved, KvStored, ModelCard, Route, StopConditions
from dynamo_core.errors import EngineShutdown, ModelNotFound, NoInstances, PluginError, ServiceUnavailable, StartupError
from dynamo_core.plugins import Compiled, Provider, activate
from dynamo_core.runtime import DistributedRuntime
from dynamo_core.runtime.discovery.mem import MemDiscovery
from dynamo_core.runtime.discovery.table import Table
from dynamo_core.runtime.planes.inproc import InprocEvents, InprocHub, InprocPlane
from dynamo_core.serving import model_text, tokenizer
from dynamo_core.serving.manager import ModelManager
from dynamo_core.serving.model_folder import ModelFolder
from dynamo_core.serving.model_text import ModelText, load_model_text
from dynamo_core.serving.output import GenerationRequest
from dynamo_core.serving.record import RequestRecord
from dynamo_core.serving.wire import ModelKey, encode_card
from dynamo_core.serving.worker import EngineWorker
from dynamo_core.specs import EngineSpec, PlaneContext, RouterSpec


class LowestFirst:
    def __init__(self, config: Any, context: Any) -> None:
        self.context = context
        self.batches: list[Any] = []

    def select(self, requests: Any, workers: Any) -> Any:
        return [Route(min(workers)) for _ in requests]

    def kv_events(self, batch: Any) -> None:
        self.batches.append(batch)


ROUTER = Provider(RouterSpec(name="lowest-first", factory=LowestFirst), "lowest-first")


class House:
    """Processes that share this one."""

    def __init__(self, stack: contextlib.AsyncExitStack, scripted: Any, folder: Path) -> None:
        self.stack = stack
        self.scripted = scripted
        self.folder = folder
        self.compiled: Compiled = activate(())
        self.table = Table()
        self.hub = InprocHub()
        self._ids = 0

    async def runtime(self) -> DistributedRuntime:
        self._ids += 1
        context = PlaneContext(namespace="dynamo", run_dir="", instance_id=self._ids)
        runtime = DistributedRuntime(
            None, MemDiscovery(self.table), InprocPlane(context, self.hub), event_plane=InprocEvents(context, self.hub)
        )
        runtime.instance_id = self._ids
        await runtime.start()
        self.stack.push_async_callback(runtime.shutdown)
        return runtime

    async def worker(self, **settings: Any) -> EngineWorker:
        settings = {"model": str(self.folder), "model_name": "m", "graceful_shutdown_secs": 0.05, **settings}
        worker = EngineWorker(await self.runtime(), self.scripted.PROVIDER, Settings(**settings))
        self.stack.push_async_callback(worker.stop)
        await worker.start()
        return worker

    async def manager(self, *, load_text: Callable[[str], ModelText] = load_model_text, **settings: Any) -> ModelManager:
        manager = ModelManager(await self.runtime(), self.compiled, ROUTER, Settings(**settings), load_text=load_text)
        self.stack.push_async_callback(manager.stop)
        await manager.start()
        return manager


@pytest.fixture
async def house(scripted: Any, model_folder: Path) -> AsyncIterator[House]:
    async with contextlib.AsyncExitStack() as stack:
        yield House(stack, scripted, model_folder)


async def until(condition: Callable[[], Any]) -> None:
    """Wait for what other callbacks bring about."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110  # many conditions, none with an event of its own
            await asyncio.sleep(0.005)


async def ready(manager: ModelManager, workers: int = 1, name: str = "m") -> Any:
    await until(lambda: any(model.name == name and len(model.workers) == workers for model in manager.models()))
    return manager.get(name)


def ask(model: Any, sink_type: Any, tokens: int = 20, prompt: tuple[int, ...] = (5, 6, 7, 8)) -> Any:
    context = Context()
    sink, record = sink_type(context), RequestRecord("r", "completions")
    request = GenerationRequest(
        id="r", endpoint="completions", prompts=(list(prompt),), conditions=StopConditions(max_tokens=tokens)
    )
    generation = model.generate(request, sink, record, context)
    return sink, record, context, generation


@pytest.mark.parametrize("hastened", [True, False])
async def test_it_is_told_when_a_models_text_has_taken_its_place(house: House, hastened: bool) -> None:
    threads: list[tuple[bool, bool]] = []
    texts: list[ModelText] = []

    def load_text(path: str) -> ModelText:
        loaded = tokenizer.load_tokenizer(ModelFolder.load(path), hastened=hastened)
        texts.append(msgspec.structs.replace(load_model_text(path), tokenizer=loaded))
        return texts[0]

    def settled() -> None:
        threads.append((threading.current_thread() is threading.main_thread(), texts[0].tokenizer.hastens))

    manager = await house.manager(load_text=load_text)
    manager.on_settled.append(settled)
    await house.worker()
    await until(lambda: threads)
    assert threads == [(False, False)]


async def test_a_worker_is_found_and_serves(house: House, recording_sink: Any) -> None:
    worker = await house.worker()
    assert worker.card == ModelCard(
        name="m", path=str(house.folder), engine="scripted", context_length=100_000, block_size=4, max_num_seqs=64,
        kv_events=True, created=worker.card.created,
    )  # fmt: skip
    manager = await house.manager()
    model = await ready(manager)
    sink, record, _, _ = ask(model, recording_sink)
    await until(lambda: sink.ended)
    assert sink.texts[0] == model.tokenizer.decode(house.scripted.expected([5, 6, 7, 8], 20))
    assert sink.usage.cached_tokens == 2
    assert record.worker_ids == list(model.workers)
    assert record.card == worker.card
    router = model.router.router
    assert router.context.block_size == 4
    assert [batch.seq for batch in router.batches] == [0]
    assert model.render_chat([{"role": "user", "content": "hi"}]) == "<user>hi"
    assert model.encode("the cat").tolist() == model.tokenizer.encode("the cat")
    assert await manager.worker_metrics() == {worker._runtime.instance_id: b"scripted_running 0\n"}


async def test_names_that_are_unknown_or_loading(house: House) -> None:
    readable = threading.Event()

    def load_text(path: str) -> ModelText:
        readable.wait(10)
        return load_model_text(path)

    manager = await house.manager(load_text=load_text)
    with pytest.raises(ModelNotFound, match="no worker has registered"):
        manager.get("m")
    card = ModelCard(name="model-a", path="/nowhere", aliases=("short",))
    runtime = await house.runtime()
    await runtime.discovery.put(str(ModelKey("dynamo", "backend", "generate", 77)), encode_card(card))
    await until(lambda: manager._cards)
    with pytest.raises(ServiceUnavailable, match="loading"):
        manager.get("short")
    with pytest.raises(ModelNotFound, match="did you mean 'model-a'") as error:
        manager.get("modela")
    assert error.value.param == "model"
    readable.set()
    await until(lambda: manager.broken)
    with pytest.raises(ServiceUnavailable, match="log says why"):
        manager.get("short")


async def test_a_large_tokenizer_becomes_faster_while_it_serves(
    house: House, recording_sink: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("fastokens")
    monkeypatch.setattr(model_text, "_SOON_LOADED", 0)
    ready_to_load = threading.Event()
    load_fast = tokenizer._load_fast

    def wait_and_load(path: Path) -> Any:
        ready_to_load.wait(10)
        return load_fast(path)

    monkeypatch.setattr(tokenizer, "_load_fast", wait_and_load)
    await house.worker()
    manager = await house.manager()
    model = await ready(manager)
    assert model.tokenizer.backend == "tokenizers"
    before = model.encode("the cat sat")
    sink, *_ = ask(model, recording_sink)
    await until(lambda: sink.ended)
    ready_to_load.set()
    await until(lambda: model.tokenizer.backend == "fastokens")
    assert model.encode("the cat sat") == before
    again, *_ = ask(model, recording_sink)
    await until(lambda: again.ended)
    assert again.texts == sink.texts


async def test_a_store_that_cannot_be_watched_ends_the_start(house: House) -> None:
    runtime = await house.runtime()

    async def watch(prefix: str) -> Any:
        raise StartupError("no store")
        yield

    runtime.discovery.watch = watch
    manager = ModelManager(runtime, house.compiled, ROUTER, Settings())
    house.stack.push_async_callback(manager.stop)
    with pytest.raises(StartupError, match="no store"):
        await manager.start()


async def test_other_namespaces_and_broken_cards_are_not_ours(house: House) -> None:
    await house.worker(namespace="elsewhere")
    runtime = await house.runtime()
    await runtime.discovery.put("models/dynamo/backend/generate/5", b"garbage")
    await runtime.discovery.put("models/dynamo/what", b"{}")
    manager = await house.manager()
    assert not manager._cards


async def test_load_reaches_the_routers_view(house: House, recording_sink: Any) -> None:
    await house.worker(engine_args={"step": 0.01})
    model = await ready(await house.manager())
    (view,) = model.workers.values()
    _, _, context, _ = ask(model, recording_sink, tokens=100_000)
    await until(lambda: view.load is not None and view.load.running == 1)
    assert (view.inflight, view.inflight_tokens) == (1, 4)
    context.kill()
    assert (view.inflight, view.inflight_tokens) == (0, 0)
    await until(lambda: view.load.running == 0)


async def test_a_client_that_goes_away_frees_the_engine(house: House, recording_sink: Any) -> None:
    worker = await house.worker(engine_args={"step": 0.001})
    model = await ready(await house.manager())
    sink, record, context, _ = ask(model, recording_sink, tokens=100_000)
    await until(lambda: sink.texts)
    context.kill()
    told = sum(1 for call in sink.calls if call[0] == "text")
    await until(lambda: not worker._engine.running)
    assert record.output_tokens >= told
    assert worker.running == 0


async def test_a_stopped_stream_ends_with_its_usage(house: House, recording_sink: Any) -> None:
    worker = await house.worker(engine_args={"step": 0.001})
    model = await ready(await house.manager())
    sink, record, context, _ = ask(model, recording_sink, tokens=100_000)
    await until(lambda: sink.texts)
    context.stop_generating()
    await until(lambda: sink.ended)
    assert sink.reasons() == {0: "cancelled"}
    assert sink.usage.output_tokens == record.output_tokens > 0
    assert not worker._engine.running


async def test_a_draining_worker_leaves_first_and_hands_over_what_does_not_finish(house: House, recording_sink: Any) -> None:
    first = await house.worker(engine_args={"step": 0.001})
    manager = await house.manager()
    lost: list[Any] = []
    manager.on_worker_lost.append(lambda name, worker: lost.append((name, worker)))
    model = await ready(manager)
    sink, record, _, _ = ask(model, recording_sink, tokens=600)
    await until(lambda: sink.texts)
    second = await house.worker()
    await ready(manager, 2)
    await first.drain()
    assert list(model.workers) == [second._runtime.instance_id]
    assert lost == [("m", first._runtime.instance_id)]
    await until(lambda: sink.ended)
    assert sink.error is None
    assert sink.texts[0] == model.tokenizer.decode(house.scripted.expected([5, 6, 7, 8], 600))
    assert (sink.usage.output_tokens, sink.usage.prompt_tokens, sink.usage.cached_tokens) == (600, 4, 2)
    assert record.worker_ids == [first._runtime.instance_id, second._runtime.instance_id]
    await first.stop()
    assert not first.running


async def test_a_draining_worker_finishes_what_it_can(house: House, recording_sink: Any) -> None:
    worker = await house.worker(engine_args={"step": 0.001}, graceful_shutdown_secs=10)
    model = await ready(await house.manager())
    sink, _, _, _ = ask(model, recording_sink, tokens=50)
    await until(lambda: sink.texts)
    await worker.drain()
    await until(lambda: sink.ended)
    assert sink.usage.output_tokens == 50


async def test_a_model_without_workers_stays_known_and_comes_back(house: House, recording_sink: Any) -> None:
    worker = await house.worker()
    manager = await house.manager()
    model = await ready(manager)
    await worker.stop()
    await until(lambda: not model.workers)
    assert not model.ready
    sink, _, _, _ = ask(manager.get("m"), recording_sink)
    await until(lambda: sink.ended)
    assert isinstance(sink.error, NoInstances)
    await house.worker()
    assert await ready(manager) is model
    sink, _, _, _ = ask(model, recording_sink)
    await until(lambda: sink.ended)
    assert sink.usage is not None


async def test_a_context_length_setting_limits_the_card(house: House) -> None:
    worker = await house.worker(context_length=64)
    assert worker.card.context_length == 64


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"model": None}, "--model"),
        ({"model": "/nowhere/at/all"}, "/nowhere/at/all"),
        ({"engine_args": {"broken_start": True}}, "scripted failed to start: no such device"),
    ],
)
async def test_what_keeps_a_worker_from_starting_is_one_sentence(house: House, settings: Any, sentence: str) -> None:
    with pytest.raises(StartupError, match=sentence):
        await house.worker(**settings)


async def test_an_engine_that_cannot_be_made_is_put_on_its_plugin(house: House, tiny_model: Any) -> None:
    def clumsy(_config: Any, _context: Any) -> Any:
        raise RuntimeError("no device")

    provider = Provider(EngineSpec(name="clumsy", factory=clumsy), "acme")
    worker = EngineWorker(await house.runtime(), provider, Settings(model=str(tiny_model)))
    with pytest.raises(PluginError, match="plugin 'acme' cannot make its engine 'clumsy': RuntimeError: no device"):
        await worker.start()
    await worker.stop()


async def test_a_dead_engine_is_told(house: House) -> None:
    worker = await house.worker()
    worker._engine.context.on_fatal("the device fell off")
    worker._engine.context.on_fatal("again")
    assert await worker.fatal == "the device fell off"


async def test_the_limit_of_moves_is_a_setting(house: House, recording_sink: Any) -> None:
    first = await house.worker(engine_args={"step": 0.001}, graceful_shutdown_secs=0)
    await house.worker(engine_args={"step": 0.001})
    model = await ready(await house.manager(migration_limit=0), 2)
    sink, _, _, _ = ask(model, recording_sink, tokens=100_000)
    await until(lambda: sink.texts)
    await first.drain()
    await until(lambda: sink.ended)
    assert isinstance(sink.error, EngineShutdown)


async def test_a_worker_that_sleeps_gets_no_requests_until_it_wakes(house: House) -> None:
    manager, worker = await house.manager(), await house.worker()
    model = await ready(manager)
    asked: list[str] = []

    async def note(what: str) -> None:
        asked.append(what)

    worker._engine.sleep, worker._engine.wake = lambda: note("sleep"), lambda: note("wake")  # type: ignore[union-attr]
    await worker.sleep()
    await until(lambda: not model.ready)
    assert worker.asleep
    await worker.wake()
    assert await ready(manager) is model
    assert (asked, worker.asleep) == (["sleep", "wake"], False)


async def test_what_runs_on_a_worker_that_sleeps_finishes_or_moves(house: House, recording_sink: Any) -> None:
    first = await house.worker(engine_args={"step": 0.001}, graceful_shutdown_secs=0.05)
    manager = await house.manager()
    model = await ready(manager)
    asked = [ask(model, recording_sink, tokens=400) for _ in range(4)]
    await until(lambda: all(sink.texts for sink, *_ in asked))
    await house.worker(engine_args={"step": 0.001})
    await ready(manager, 2)
    await first.sleep()
    assert first.running == 0
    await until(lambda: all(sink.ended for sink, *_ in asked))
    assert [sink.error for sink, *_ in asked] == [None] * 4
    assert model.counters.migrated == 4


async def test_a_sleeping_worker_refuses_what_reaches_it_all_the_same(house: House, recording_sink: Any) -> None:
    first = await house.worker()
    await ready(await house.manager())
    await first.sleep()
    assert first._handler is not None
    with pytest.raises(EngineShutdown, match="asleep"):
        first._handler(None, Context(), recording_sink(Context()))


async def test_an_engine_that_fails_its_canary_is_left_out_until_it_answers(
    house: House, scripted: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    canary = EngineRequest(id="canary", token_ids=[1], stop=StopConditions(max_tokens=1))
    monkeypatch.setattr(scripted.ScriptedEngine, "health_payload", lambda engine: canary, raising=False)
    manager = await house.manager()
    await house.worker(canary_wait_secs=0.05, health_check_timeout_secs=0.1)
    model = await ready(manager)
    with monkeypatch.context() as hanging:
        hanging.setattr(scripted.ScriptedEngine, "_advance", lambda *_: False)
        await until(lambda: not model.ready)
    await until(lambda: model.ready)


async def test_a_router_that_cannot_be_made_is_put_on_its_plugin(house: House, caplog: pytest.LogCaptureFixture) -> None:
    def clumsy(_config: Any, _context: Any) -> Any:
        raise RuntimeError("no table")

    provider = Provider(RouterSpec(name="clumsy", factory=clumsy), "round-robin")
    manager = ModelManager(await house.runtime(), activate(("round-robin",)), provider, Settings())
    house.stack.push_async_callback(manager.stop)
    await manager.start()
    await house.worker()
    await until(lambda: manager.broken)
    assert "plugin 'round-robin' (dynamo-core " in manager.broken["m"]
    assert "cannot make its router 'clumsy': RuntimeError: no table" in manager.broken["m"]
    assert manager.broken["m"] in caplog.text
    assert "Traceback" not in caplog.text
    with pytest.raises(ServiceUnavailable, match="the frontend's log says why"):
        manager.get("m")


async def test_a_router_whose_methods_do_not_fit_is_refused_before_the_first_request(house: House) -> None:
    class Narrow:
        def select(self, requests: Any) -> Any: ...

    await house.worker()
    provider = Provider(RouterSpec(name="narrow", factory=lambda config, context: Narrow()), "round-robin")
    manager = ModelManager(await house.runtime(), house.compiled, provider, Settings())
    house.stack.push_async_callback(manager.stop)
    await manager.start()
    await until(lambda: manager.broken)
    assert "its router 'narrow' has a method select that cannot be called with 2 arguments" in manager.broken["m"]


async def test_a_frontend_that_comes_late_learns_what_workers_have(house: House) -> None:
    worker = await house.worker()
    publish = worker._engine.context.publish_kv_events
    publish([KvStored((1, 2, 3)), KvStored((4,))])
    publish([KvRemoved((4,)), KvStored((5, 6))])
    model = await ready(await house.manager())
    await until(lambda: held(model) == {1, 2, 3, 5, 6})
    publish([KvStored((7,))])
    await until(lambda: held(model) == {1, 2, 3, 5, 6, 7})


async def test_a_batch_that_got_lost_is_made_up_for(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = await house.worker()
    publish, plane = worker._engine.context.publish_kv_events, worker._runtime.event_plane
    publish([KvStored((1,))])
    model = await ready(await house.manager())
    await until(lambda: held(model) == {1})
    with monkeypatch.context() as patch:
        patch.setattr(plane, "publish", lambda topic, payload: None)
        publish([KvStored((2,)), KvRemoved((1,))])
    publish([KvStored((3,))])
    await until(lambda: held(model) == {2, 3})
    with monkeypatch.context() as patch:
        patch.setattr(plane, "publish", lambda topic, payload: None)
        publish([KvStored((4,))])
    await until(lambda: held(model) == {2, 3, 4})  # nothing follows: the next reading of the load tells


def held(model: Any) -> set[int]:
    """Blocks that the router was told of, as they add up."""
    blocks: set[int] = set()
    for batch in model.router.router.batches:
        for event in batch.events:
            if isinstance(event, KvStored):
                blocks.update(event.seq_hashes)
            elif isinstance(event, KvRemoved):
                blocks.difference_update(event.seq_hashes)
            else:
                blocks.clear()
    return blocks
