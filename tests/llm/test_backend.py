"""A backend written with dynamo_core.llm, behind the models of a frontend."""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zmq.asyncio

from dynamo_core import llm
from dynamo_core.config import Settings
from dynamo_core.contracts import Context, EngineLoad, KvCleared, KvRemoved, KvStored, SamplingParams, StopConditions
from dynamo_core.errors import ConfigError, EngineError, HttpError, InvalidRequest, NoInstances, StartupError
from dynamo_core.kv import sequence_hashes
from dynamo_core.llm import (
    KvEventPublisher,
    KvRouter,
    KvRouterConfig,
    ModelInput,
    ModelRuntimeConfig,
    ModelType,
    RouterMode,
    WorkerMetricsPublisher,
    fetch_model,
    register_model,
    unregister_model,
)
from dynamo_core.llm import exceptions as dynamo_exceptions
from dynamo_core.plugins import activate
from dynamo_core.serving.manager import ModelManager
from dynamo_core.serving.output import GenerationRequest
from dynamo_core.serving.record import RequestRecord
from dynamo_core.serving.wire import decode_kv_batch
from dynamo_core.testing import InprocCluster

PATH = "dynamo.backend.generate"
CHAT = ModelType.Chat | ModelType.Completions


class Backend:
    """Repeats the prompt; ``requests`` are what the handler saw."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.last: dict[str, Any] = {"finish_reason": "eos"}

    async def generate(self, request: dict[str, Any], context: Context) -> AsyncIterator[Any]:
        self.requests.append(request)
        if request["stop_conditions"]["min_tokens"] == 13:
            raise HttpError(422, "thirteen is unlucky")
        for token in request["token_ids"][: request["stop_conditions"]["max_tokens"]]:
            yield {"token_ids": [token]}
            await asyncio.sleep(0)
        yield self.last


class Sink:
    def __init__(self) -> None:
        self.texts: list[str] = []
        self.reason: str | None = None
        self.ended: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def text(self, index: int, text: str) -> None:
        self.texts.append(text)

    def output(self, index: int, output: Any) -> None:
        self.texts.append(output.text)
        self.reason = output.finish_reason or self.reason

    def flush(self) -> None: ...

    def completed(self, usage: Any) -> None:
        self.ended.set_result(usage)

    def failed(self, error: Any) -> None:
        self.ended.set_exception(error)


async def until(condition: Any) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110  # discovery and events tell in their own time
            await asyncio.sleep(0.005)


class Stage:
    """A frontend's models, and backends in runtimes of their own."""

    def __init__(self, cluster: InprocCluster, folder: Path) -> None:
        self.cluster = cluster
        self.folder = str(folder)
        self.tasks: list[asyncio.Task[Any]] = []
        self.manager: Any = None

    async def start(self) -> None:
        compiled = activate(("kv-router",))
        runtime = await self.cluster.runtime()
        self.manager = ModelManager(runtime, compiled, compiled.router("kv-router"), Settings())
        await self.manager.start()

    async def endpoint(self, handler: Any = None) -> Any:
        endpoint = (await self.cluster.runtime()).endpoint(PATH)
        if handler is not None:
            self.tasks.append(asyncio.create_task(endpoint.serve_endpoint(handler, metrics_labels=[("kind", "test")])))
        return endpoint

    async def register(self, endpoint: Any, **options: Any) -> None:
        await register_model(ModelInput.Tokens, CHAT, endpoint, self.folder, "m", **options)

    async def model(self, workers: int = 1) -> Any:
        await until(lambda: any(model.name == "m" and len(model.workers) == workers for model in self.manager.models()))
        return self.manager.get("m")

    async def ask(self, prompt: list[int], **conditions: Any) -> tuple[Sink, RequestRecord]:
        sink, record = Sink(), RequestRecord("r", "completions")
        conditions.setdefault("max_tokens", 100)
        request = GenerationRequest(
            id="r",
            endpoint="completions",
            prompts=(prompt,),
            conditions=StopConditions(**conditions),
            sampling=SamplingParams(seed=1),
        )
        (await self.model(len(self.manager.get("m").workers))).generate(request, sink, record, Context())
        async with asyncio.timeout(20):
            await sink.ended
        return sink, record


@pytest.fixture
async def stage(cluster: InprocCluster, tiny_model: Path) -> AsyncIterator[Stage]:
    made = Stage(cluster, tiny_model)
    await made.start()
    yield made
    await made.manager.stop()
    for task in made.tasks:
        task.cancel()
    await asyncio.gather(*made.tasks, return_exceptions=True)


@pytest.mark.parametrize("order", ["register first", "serve first"])
async def test_a_registered_backend_sees_and_yields_dynamos_mappings(stage: Stage, order: str) -> None:
    backend = Backend()
    endpoint = await stage.endpoint(backend.generate if order == "serve first" else None)
    await stage.register(endpoint, kv_cache_block_size=16, context_length=50)
    if order == "register first":
        stage.tasks.append(asyncio.create_task(endpoint.serve_endpoint(backend.generate)))
    model = await stage.model()
    assert (model.card.context_length, model.card.block_size, model.card.engine) == (50, 16, "custom")
    sink, record = await stage.ask([40, 41, 42])
    assert "".join(sink.texts) == model.tokenizer.decode([40, 41, 42], True)
    assert (sink.reason, record.output_tokens) == ("stop", 3)
    (seen,) = backend.requests
    assert seen["token_ids"] == [40, 41, 42]
    assert seen["stop_conditions"]["max_tokens"] == 100
    assert (seen["sampling_options"]["seed"], seen["sampling_options"]["temperature"]) == (1, None)
    assert seen["model"] == "m"


async def test_what_a_backend_raises_reaches_the_client_with_its_status(stage: Stage) -> None:
    backend = Backend()
    endpoint = await stage.endpoint(backend.generate)
    await stage.register(endpoint)
    await stage.model()
    with pytest.raises(HttpError, match="unlucky") as caught:
        await stage.ask([1], min_tokens=13)
    assert caught.value.status == 422
    backend.last = {"finish_reason": "tired"}
    with pytest.raises(EngineError, match="tired"):
        await stage.ask([1, 2])


async def test_metrics_of_a_backend_reach_the_frontend(stage: Stage) -> None:
    endpoint = await stage.endpoint(Backend().generate)
    await stage.register(endpoint)
    await stage.model()
    await stage.ask([1, 2])
    async with asyncio.timeout(20):
        while not (texts := await stage.manager.worker_metrics()):  # noqa: ASYNC110  # found by discovery, in its time
            await asyncio.sleep(0.01)
    assert b'kind="test"' in texts[endpoint.connection_id()]


async def test_an_unregistered_model_takes_no_requests(stage: Stage) -> None:
    endpoint = await stage.endpoint(Backend().generate)
    await stage.register(endpoint)
    model = await stage.model()
    await unregister_model(endpoint)
    await until(lambda: not model.ready)


async def test_kv_events_and_load_route_requests(stage: Stage) -> None:
    prompt = list(range(100, 148))
    blocks = sequence_hashes(prompt, 16)
    endpoints = []
    for _ in range(2):
        endpoint = await stage.endpoint(Backend().generate)
        await stage.register(endpoint, kv_cache_block_size=16)
        endpoints.append(endpoint)
    model = await stage.model(2)
    publishers = [KvEventPublisher(endpoint, kv_block_size=16) for endpoint in endpoints]
    await until(lambda: len(model.workers) == 2 and all(view.card.kv_events for view in model.workers.values()))
    router = model.router.router
    publishers[1].publish_stored(prompt, [16, 16, 16], [-5, -6, -7])
    await until(lambda: router.state()["workers"][endpoints[1].connection_id()]["blocks"] == len(blocks))
    for _ in range(3):
        _, record = await stage.ask(prompt)
        assert record.worker_ids == [endpoints[1].connection_id()]
    load = WorkerMetricsPublisher()
    with pytest.raises(ConfigError, match="create_endpoint"):
        load.publish(0, 7)
    await load.create_endpoint(endpoints[0])
    load.publish(0, 7, kv_total_blocks=10, running=2)
    view = model.workers[endpoints[0].connection_id()]
    await until(lambda: view.load == EngineLoad(running=2, kv_used_blocks=7, kv_total_blocks=10))


async def test_a_publisher_translates_hashes_of_any_kind(cluster: InprocCluster) -> None:
    runtime = await cluster.runtime()
    told: list[Any] = []
    runtime.event_plane.publish = lambda topic, payload: told.append(decode_kv_batch(payload))  # type: ignore[method-assign]
    publisher = KvEventPublisher(runtime.endpoint(PATH), kv_block_size=2, dp_rank=1)
    first, second = sequence_hashes([1, 2, 3, 4], 2)
    publisher.publish_stored([1, 2], [2], [-77])
    publisher.publish_stored([3, 4, 5], [2, 1], [-78, -79], 0, -77)
    publisher.publish_stored([9], [1], [-80])  # nothing complete
    publisher.publish_removed([-78, -99])
    publisher.publish_cleared()
    assert [(batch.seq, batch.dp_rank) for batch in told] == [(number, 1) for number in range(4)]
    one, two = array("Q", [first]), array("Q", [second])
    assert [batch.events for batch in told] == [(KvStored(one),), (KvStored(two),), (KvRemoved(two),), (KvCleared(),)]
    with pytest.raises(ConfigError, match="kv_block_size"):
        KvEventPublisher(runtime.endpoint(PATH))


async def test_a_publisher_relays_a_zmq_socket_and_voids_the_cache_on_a_gap(cluster: InprocCluster, tmp_path: Path) -> None:
    runtime = await cluster.runtime()
    told: list[Any] = []
    runtime.event_plane.publish = lambda topic, payload: told.append(msgspec.msgpack.decode(payload)[2])  # type: ignore[method-assign]
    with zmq.asyncio.Context() as context, context.socket(zmq.XPUB) as socket:
        socket.linger = 0
        address = f"ipc://{tmp_path}/kv"
        socket.bind(address)
        publisher = KvEventPublisher(runtime.endpoint(PATH), kv_block_size=2, zmq_endpoint=address, zmq_topic="kv")
        async with asyncio.timeout(20):
            await socket.recv()  # the subscription
        for number in (0, 2):
            event = {"type": "BlockStored", "block_hashes": [number], "token_ids": [number, 9], "block_size": 2}
            await socket.send_multipart([b"kv", number.to_bytes(8, "big"), msgspec.msgpack.encode([0.0, [event]])])
        await until(lambda: len(told) == 3)
        assert [batch[0][0] for batch in told] == ["s", "c", "s"]
        publisher.shutdown()
        await runtime.shutdown()


# --- bad input ---------------------------------------------------------------------------------------------------------------


async def test_what_is_not_served_is_refused_in_one_sentence(cluster: InprocCluster, tiny_model: Path, tmp_path: Path) -> None:
    endpoint = (await cluster.runtime()).endpoint(PATH)
    folder = str(tiny_model)
    with pytest.raises(ConfigError, match=r"ModelInput\.Text"):
        await register_model(ModelInput.Text, CHAT, endpoint, folder)
    with pytest.raises(ConfigError, match="Images"):
        await register_model(ModelInput.Tokens, CHAT | ModelType.Images, endpoint, folder)
    with pytest.raises(ConfigError, match="go together"):
        await register_model(ModelInput.Tokens, CHAT, endpoint, folder, lora_name="x")
    with pytest.raises(ConfigError, match="media_decoder"):
        await register_model(ModelInput.Tokens, CHAT, endpoint, folder, media_decoder=object(), needs=None)
    with pytest.raises(StartupError):
        await register_model(ModelInput.Tokens, CHAT, endpoint, str(tmp_path / "nothing"))
    config = ModelRuntimeConfig()
    with pytest.raises(AttributeError):
        config.contextlength = 3  # type: ignore[attr-defined]


async def test_a_model_that_is_a_folder_needs_no_download(tiny_model: Path) -> None:
    assert await fetch_model(str(tiny_model)) == str(tiny_model)


def test_both_spellings_are_one_thing() -> None:
    assert (llm.register_llm, llm.unregister_llm, llm.fetch_llm) == (register_model, unregister_model, fetch_model)
    assert issubclass(dynamo_exceptions.HttpError, dynamo_exceptions.DynamoException)
    assert dynamo_exceptions.InvalidArgument is InvalidRequest


# --- KvRouter ----------------------------------------------------------------------------------------------------------------


async def collect(stream: Any) -> list[Any]:
    async with asyncio.timeout(20):
        return [item async for item in stream]


async def test_kv_router_finds_the_worker_that_has_the_prefix(stage: Stage) -> None:
    prompt = list(range(100, 148))
    endpoints = [await stage.endpoint(Backend().generate) for _ in range(2)]
    for endpoint in endpoints:
        await stage.register(endpoint, kv_cache_block_size=16)
    publishers = [KvEventPublisher(endpoint, kv_block_size=16) for endpoint in endpoints]
    await stage.model(2)
    router = KvRouter((await stage.cluster.runtime()).endpoint(PATH), 16, KvRouterConfig(router_temperature=0.0))
    await until(lambda: all(view.card.kv_events for view in stage.manager.get("m").workers.values()))
    await router.get_potential_loads([])
    await until(lambda: len(router._workers.feeds) == 2 and all(card.kv_events for card in router._workers.cards.values()))
    publishers[1].publish_stored(prompt, [16, 16, 16], [1, 2, 3])
    async with asyncio.timeout(20):
        while (await router.best_worker(prompt)) != (endpoints[1].connection_id(), 0, 3):  # noqa: ASYNC110  # events take time
            await asyncio.sleep(0.01)
    chunks = await collect(await router.generate(prompt, "m", {"max_tokens": 2}, {"temperature": 0.0}))
    assert [token for chunk in chunks for token in chunk["token_ids"]] == prompt[:2]
    assert chunks[-1]["finish_reason"] == "stop"
    pinned = await collect(await router.generate([7], "m", {"max_tokens": 1}, worker_id=endpoints[0].connection_id()))
    assert pinned[0]["token_ids"] == [7]
    await router.close()


async def test_kv_router_counts_what_it_was_asked_to_book(stage: Stage) -> None:
    endpoint = await stage.endpoint(Backend().generate)
    await stage.register(endpoint, kv_cache_block_size=16)
    await stage.model()
    router = KvRouter((await stage.cluster.runtime()).endpoint(PATH), 16)
    assert (await router.best_worker([1, 2], request_id="a")).worker_id == endpoint.connection_id()
    assert (await router.get_potential_loads([9]))[0]["potential_prefill_tokens"] == 3
    with pytest.raises(InvalidRequest, match="running already"):
        await router.best_worker([1], request_id="a")
    await router.mark_prefill_complete("a")
    await router.free("a")
    await router.free("a")
    assert (await router.get_potential_loads([9]))[0]["potential_prefill_tokens"] == 1
    with pytest.raises(InvalidRequest, match="router_config_override: router_ttl_secs=1"):
        await router.best_worker([1], {"router_ttl_secs": 1})
    with pytest.raises(InvalidRequest):
        await router.generate([1], "m", {"max_tokens": "many"})


async def test_kv_router_says_what_is_wrong(cluster: InprocCluster) -> None:
    endpoint = (await cluster.runtime()).endpoint(PATH)
    with pytest.raises(NoInstances, match=r"dynamo\.backend\.generate"):
        await KvRouter(endpoint, 16).best_worker([1])
    with pytest.raises(ConfigError, match="router_temprature"):
        KvRouter(endpoint, 16, {"router_temprature": 1})
    with pytest.raises(ConfigError, match="KvRouter"):
        await endpoint.client(RouterMode.KV)
    assert await endpoint.client(RouterMode.Random)


async def test_kv_router_keeps_to_taints_and_takes_a_handlers_own_request(stage: Stage) -> None:
    seen = [Backend(), Backend()]
    endpoints = [await stage.endpoint(backend.generate) for backend in seen]
    for endpoint, taint in zip(endpoints, ("slow", "fast"), strict=True):
        config = ModelRuntimeConfig()
        config.taints = [taint]
        config.runtime_data = {"zone": taint}
        await stage.register(endpoint, kv_cache_block_size=16, runtime_config=config)
    await stage.model(2)
    own = (await stage.cluster.runtime()).endpoint(PATH)
    router = KvRouter(own, 16)
    await router.get_potential_loads([])
    await until(lambda: {card.taints for card in router._workers.cards.values()} == {("slow",), ("fast",)})
    for _ in range(3):
        constraints = llm.RoutingConstraints(["fast"], {"slow": 1.0})
        await collect(await router.generate([7, 8], "m", {"max_tokens": 2}, routing_constraints=constraints))
    assert [len(backend.requests) for backend in seen] == [0, 3]

    handed_on = {**seen[1].requests[0], "routing": {"backend_instance_id": endpoints[0].connection_id()}}
    chunks = await collect(await router.generate_from_request(handed_on))
    assert [token for chunk in chunks for token in chunk["token_ids"]] == [7, 8]
    assert len(seen[0].requests) == 1
    with pytest.raises(InvalidRequest, match="token_ids"):
        await router.generate_from_request({"model": "m"})

    client = await own.client()
    assert await client.wait_for_instance_by_runtime_data("zone", "fast", timeout_s=10) == endpoints[1].connection_id()
    with pytest.raises(NoInstances, match=rf"1 of 2 instances of {PATH} have zone = 'slow' after 0\.1 s"):
        await client.wait_for_instances_by_runtime_data("zone", "slow", 2, 0.1)
    await llm.update_model_taints(endpoints[0], ["fast"])
    await until(lambda: {card.taints for card in router._workers.cards.values()} == {("fast",)})
    with pytest.raises(ConfigError, match="register_model before"):
        await llm.update_model_taints(own, ["fast"])
    await router.close()


# --- what registrations say --------------------------------------------------------------------------------------------------


async def test_a_template_of_ones_own_travels_with_the_card(stage: Stage, tmp_path: Path) -> None:
    template = tmp_path / "own.jinja"
    template.write_text("{% for message in messages %}[{{ message.content }}]{% endfor %}{{ bos_token }}")
    endpoint = await stage.endpoint(Backend().generate)
    await stage.register(endpoint, custom_template_path=str(template))
    template.unlink()
    model = await stage.model()
    assert model.template.render([{"role": "user", "content": "hi"}], add_generation_prompt=False) == "[hi]<s>"
    template.write_text("{% for %}")
    with pytest.raises(StartupError, match=r"own\.jinja has a syntax error in line 1"):
        await stage.register(endpoint, custom_template_path=str(template))
    with pytest.raises(StartupError, match=r"nothing\.jinja cannot be read: No such file"):
        await stage.register(endpoint, custom_template_path=str(tmp_path / "nothing.jinja"))


async def test_an_adapter_does_not_take_the_place_of_a_model(stage: Stage) -> None:
    endpoint = await stage.endpoint(Backend().generate)
    await stage.register(endpoint, model_aliases=["other-name"])
    model = await stage.model()
    assert stage.manager.get("other-name") is model
    with pytest.raises(ConfigError, match="serve adapter 'poet' on an endpoint of its own"):
        await stage.register(endpoint, lora_name="poet", base_model_path=stage.folder)
    own = endpoint.runtime.endpoint("dynamo.poet.generate")
    stage.tasks.append(asyncio.create_task(own.serve_endpoint(Backend().generate)))
    for _ in range(2):  # registering again is no clash
        await stage.register(own, lora_name="poet", base_model_path=stage.folder)
    await until(lambda: any(model.name == "poet" and model.ready for model in stage.manager.models()))
    assert stage.manager.get("poet").card.lora == "poet"


async def test_every_argument_of_dynamos_is_known(stage: Stage) -> None:
    endpoint = await stage.endpoint(Backend().generate)
    config = ModelRuntimeConfig()
    config.set_disaggregated_endpoint("127.0.0.1", 9)
    config.set_structural_tag({"a": 1})
    config.taints = {"fast"}
    config.kv_transfer_preferred_weight = 0.5
    assert (config.bootstrap_host, config.bootstrap_port, config.structural_tag) == ("127.0.0.1", 9, {"a": 1})
    await stage.register(
        endpoint,
        worker_type=llm.WorkerType.Aggregated,
        kv_cache_block_size=16,
        router_config=None,
        runtime_config=config,
        tensor_model_config=None,
        user_data={"owner": "me"},
        custom_template_path=None,
        media_decoder=None,
        media_fetcher=None,
        lora_name=None,
        base_model_path=None,
        needs=[[llm.WorkerType.Aggregated]],
        self_host_metadata=True,
        ignore_weights=True,
        max_gpu_lora_count=4,
        model_aliases=None,
        skip_model_assets=False,
    )
    card = (await stage.model()).card
    assert (card.taints, card.extra["user_data"]) == (("fast",), {"owner": "me"})
    for refused in ({"router_config": llm.RouterConfig(RouterMode.Random)}, {"skip_model_assets": True}):
        with pytest.raises(ConfigError, match=next(iter(refused))):
            await stage.register(endpoint, **refused)
    with pytest.raises(TypeError, match="custom_template"):
        await stage.register(endpoint, custom_template="x")


def test_types_answer_as_dynamos_do() -> None:
    both = ModelType.Chat | ModelType.Embedding
    assert (both.supports_chat(), both.supports_embedding(), both.supports_rerank()) == (True, True, False)
    assert (ModelType.Classify.supports_classify(), ModelType.Pooling.supports_pooling()) == (True, True)
    assert (ModelType.Empty | ModelType.Chat) == ModelType.Chat
    assert str(llm.WorkerType.Prefill) == "prefill"
