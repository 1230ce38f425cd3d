"""The example of every hook in docs/plugins.md is installed, activated and used."""

import importlib
import logging
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click.testing
import prometheus_client
import pytest
from litestar import Litestar
from litestar.testing import TestClient

from dynamo_core import hookspecs
from dynamo_core.contracts import (
    Context,
    EngineLoad,
    EngineRequest,
    HttpRequestInfo,
    Instance,
    ModelCard,
    OutputStream,
    PlannerObservation,
    PoolReading,
    PoolRequest,
    PoolView,
    PreparedRequest,
    Principal,
    Proposal,
    Put,
    RequestSummary,
    Route,
    RouteRequest,
    StageState,
    StopConditions,
    Synced,
    WorkerView,
)
from dynamo_core.contracts.prefill_policy import PrefillRequest
from dynamo_core.errors import NoInstances, PermissionDenied, RateLimited, Unauthenticated
from dynamo_core.plugins import Compiled, activate
from dynamo_core.specs import MetricsContext

PAGE = (Path(__file__).parents[2] / "docs" / "plugins.md").read_text()
SECTIONS = dict(re.findall(r"^### (dynamo_\w+)\(.*?\)$(.*?)(?=^##)", PAGE, re.MULTILINE | re.DOTALL))
HOOKS = (*hookspecs.REGISTRATION_HOOKS, *hookspecs.REQUEST_HOOKS, *hookspecs.LIFECYCLE_HOOKS)
INFO = HttpRequestInfo(id="r", method="POST", path="/v1/completions", headers={}, client="10.0.0.9")

Example = Callable[[str], Compiled]


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Example:
    """Install the example of a hook as pip would, and activate it."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def activated(hook: str) -> Compiled:
        (source,) = re.findall(r"```python\n(.*?)```", SECTIONS[hook], re.DOTALL)
        module = f"example_of_{hook}"
        name = module.replace("_", "-")
        (tmp_path / f"{module}.py").write_text(source)
        info = tmp_path / f"{module}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[dynamo.plugins]\n{name} = {module}\n")
        importlib.invalidate_caches()
        monkeypatch.delitem(sys.modules, module, raising=False)
        return activate([name])

    return activated


def made(providers: Any, context: Any = None) -> Any:
    (provider,) = providers.values()
    return provider.spec.factory(provider.config, context)


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_has_an_example_that_is_a_plugin_and_says_its_kind(example: Example, hook: str) -> None:
    assert SECTIONS[hook].strip().startswith(("Registration", "Request", "Lifecycle"))
    assert [info.state for info in example(hook).plugins] == ["active"]


@pytest.mark.parametrize("hook", [hook for hook in HOOKS if hook not in hookspecs.LIFECYCLE_HOOKS])
def test_every_hook_says_what_it_costs(hook: str) -> None:
    assert re.search(r"\bCost:\s", SECTIONS[hook])


async def test_engine(example: Example) -> None:
    compiled = example("dynamo_engines")
    engine = made(compiled.engines)
    await engine.start()
    request = EngineRequest(id="a", token_ids=[1, 2, 3], stop=StopConditions(max_tokens=2))
    assert [list(chunk.token_ids) async for chunk in engine.generate(request, Context())] == [[1, 2]]


def test_router(example: Example) -> None:
    compiled = example("dynamo_routers")
    assert compiled.router("last").spec.name == "last-worker"
    workers = {number: WorkerView(number, ModelCard(name="m", path="")) for number in (1, 2)}
    assert made(compiled.routers).select([RouteRequest(id="a", token_ids=[1])], workers) == [Route(2)]


async def test_discovery(example: Example) -> None:
    store = made(example("dynamo_discovery").discovery)
    await store.put("a/1", b"x")
    assert [event async for event in store.watch("a/")] == [Put("a/1", b"x"), Synced()]


async def test_request_plane(example: Example) -> None:
    plane = made(example("dynamo_request_planes").request_planes)

    def handler(request: Any, context: Context, sink: Any) -> None:
        sink.item(request * 2)
        sink.end()

    class Receiver:
        def __init__(self) -> None:
            self.events: list[Any] = []

        def on_items(self, items: list[Any]) -> None:
            self.events += items

        def on_end(self) -> None:
            self.events.append("end")

        def on_error(self, error: Exception) -> None:
            self.events.append(type(error))

    address = await plane.serve("ns.comp.ep", handler)
    instance = Instance(instance_id=1, namespace="ns", component="comp", endpoint="ep", address=address)
    receiver = Receiver()
    plane.open(instance, 21, Context(), receiver)
    await plane.unserve("ns.comp.ep")
    plane.open(instance, 21, Context(), receiver)
    assert receiver.events == [42, "end", NoInstances]


async def test_event_plane(example: Example) -> None:
    plane = made(example("dynamo_event_planes").event_planes)
    await plane.start()
    assert await plane.address() == ""
    plane.subscribe("", "kv", print).publish("kv", b"")


def test_planner(example: Example) -> None:
    planner = made(example("dynamo_planners").planners)
    reading = PoolReading(pool="dynamo.backend", ready=2, loads=(EngineLoad(running=20, waiting=5), EngineLoad(running=16)))
    decision = planner.plan(PlannerObservation(time=0, interval=5, pools=(reading,)))
    assert (decision.id, decision.replicas) == (1, {"dynamo.backend": 3})


def test_planner_stage(example: Example) -> None:
    compiled = example("dynamo_planner_stages")
    assert [provider.spec.name for provider in compiled.stages("constrain")] == ["budget"]
    state = StageState(observation=None, proposals=(Proposal(pool="a.b", kind="set", replicas=20),))
    assert made(compiled.planner_stages).run(state).proposals == (Proposal(pool="a.b", kind="at-most", replicas=8),)


def test_predictor(example: Example) -> None:
    predictor = made(example("dynamo_predictors").predictors)
    assert predictor.predict() == 0
    predictor.observe(3)
    assert predictor.predict() == 3


async def test_connector(example: Example) -> None:
    connector = made(example("dynamo_connectors").connectors)
    planner = made(example("dynamo_planners").planners)
    reading = PoolReading(pool="dynamo.backend")
    await connector.apply(planner.plan(PlannerObservation(time=0, interval=5, pools=(reading,))))
    assert (await connector.replicas())["dynamo.backend"].ready == 1


def test_pool_selector(example: Example) -> None:
    selector = made(example("dynamo_pool_selectors").pool_selectors)
    pools = {name: PoolView(namespace=name, ready=1) for name in ("short", "long")}
    for tokens, best in ((10, "short"), (10_000, "long")):
        assert selector.select(PoolRequest(id="a", prompt_tokens=tokens, max_tokens=1), pools)[0] == best


def test_prefill_policy(example: Example) -> None:
    policy = made(example("dynamo_prefill_policies").prefill_policies)
    worker = WorkerView(1, ModelCard(name="m", path=""))
    for cached, remote in ((0, True), (900, False)):
        assert policy.remote(PrefillRequest(id="a", prompt_tokens=1000, cached_tokens=cached, decode_worker=worker)) is remote


@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_parser_gives_the_same_however_the_text_is_cut(example: Example, size: int) -> None:
    parser = made(example("dynamo_parsers").reasoning_parsers)
    text = "I think\nso.\n\nYes.\n\nMore."
    parts = [parser.push(text[start : start + size]) for start in range(0, len(text), size)] + [parser.finish()]
    assert "".join(part.reasoning for part in parts) == "I think\nso."
    assert "".join(part.content for part in parts) == "Yes.\n\nMore."


def test_authenticators(example: Example) -> None:
    authenticate = example("dynamo_authenticators").authenticate
    with pytest.raises(Unauthenticated):
        authenticate(INFO)


def test_rate_limiters(example: Example) -> None:
    limit = example("dynamo_rate_limiters").rate_limit
    for _ in range(100):
        limit(INFO, None)
    with pytest.raises(RateLimited):
        limit(INFO, None)


def test_output_filters(example: Example) -> None:
    open_filter = example("dynamo_output_filters").output_filter
    stream = OutputStream(request_id="r", model="m", endpoint="chat", headers={"x-shout": "1"}, principal=None, index=0)
    assert open_filter(stream).push("ab") == "AB"


def test_metrics(example: Example) -> None:
    context = MetricsContext(registry=prometheus_client.CollectorRegistry(), prefix="p")
    observe = example("dynamo_metrics").start_metrics(context)
    for tokens in (10, 9000):
        observe(summary(prompt_tokens=tokens))
    assert context.registry.get_sample_value("p_long_prompts_total") == 1


def test_http_routes(example: Example) -> None:
    (spec,) = example("dynamo_http_routes").http
    with TestClient(Litestar(route_handlers=[*spec.route_handlers], openapi_config=None)) as client:
        assert client.get("/motto").json() == {"motto": "Installed is not active."}


def test_commands(example: Example) -> None:
    command = example("dynamo_commands").command("hello").spec.factory()
    assert click.testing.CliRunner().invoke(command).output == "hello\n"


def test_authenticate(example: Example) -> None:
    authenticate = example("dynamo_authenticate").authenticate
    request = {"id": "r", "method": "POST", "path": "/", "client": ""}
    assert authenticate(HttpRequestInfo(headers={"x-user": "ann"}, **request)).id == "ann"
    with pytest.raises(PermissionDenied):
        authenticate(HttpRequestInfo(headers={"x-user": "mallory"}, **request))


def test_rate_limit(example: Example) -> None:
    limit = example("dynamo_rate_limit").rate_limit
    limit(INFO, None)
    with pytest.raises(RateLimited):
        limit(INFO, Principal(id="a", service_class="suspended"))


def test_prepare(example: Example) -> None:
    request = PreparedRequest(
        id="r", model="m", endpoint="chat", principal=None, headers={}, body=None, token_ids=[1], max_tokens=4000
    )
    example("dynamo_prepare").prepare(request)
    assert (request.max_tokens, request.priority) == (256, 10)


def test_request_finished(example: Example, caplog: pytest.LogCaptureFixture) -> None:
    example("dynamo_request_finished").finished(summary(ttft=7.0))
    assert "request r waited 7.0 s" in caplog.text


async def test_lifecycle(example: Example, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    await example("dynamo_startup").startup("worker")
    compiled = example("dynamo_shutdown")
    await compiled.startup("frontend")
    await compiled.shutdown("frontend")
    assert "frontend is over" in caplog.text


def summary(**values: Any) -> RequestSummary:
    return RequestSummary(id="r", model="m", endpoint="chat", principal=None, status=200, outcome="completed", **values)
