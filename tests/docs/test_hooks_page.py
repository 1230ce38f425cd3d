"""docs/plugins.md names every hook with its exact arguments, and its snippets are working plugins."""

import inspect
import re
import sys
import types
from pathlib import Path

import pytest

from dynamo_core import hookspecs
from dynamo_core.contracts import EngineRequest, Hold, ModelCard, Route, RouteRequest, StopConditions, WorkerView
from dynamo_core.contracts.context import Context

PAGE = (Path(__file__).parents[2] / "docs" / "plugins.md").read_text()
HOOKS = {name: getattr(hookspecs, name) for name in dir(hookspecs) if name.startswith("dynamo_")}


def snippet(name: str) -> types.ModuleType:
    source = re.search(rf"```python\n(# {re.escape(name)}\.py\n.*?)```", PAGE, re.DOTALL)
    assert source is not None
    module = types.ModuleType(name)
    exec(compile(source[1], f"{name}.py", "exec"), module.__dict__)
    return module


def test_every_hook_is_described_with_its_exact_arguments():
    described = dict(re.findall(r"^### (dynamo_\w+)\((.*?)\)$", PAGE, re.MULTILINE))
    actual = {name: ", ".join(inspect.signature(hook).parameters) for name, hook in HOOKS.items()}
    assert described == actual


def test_every_hook_is_of_exactly_one_kind():
    kinds = [*hookspecs.REGISTRATION_HOOKS, *hookspecs.REQUEST_HOOKS, *hookspecs.LIFECYCLE_HOOKS]
    assert sorted(kinds) == sorted(HOOKS)


def test_the_router_of_the_page_fills_one_worker_and_then_the_next():
    (spec,) = snippet("first_fit").dynamo_routers()
    router = spec.factory(None, None)
    card = ModelCard(name="m", path="")
    workers = {1: WorkerView(1, card, inflight=8), 2: WorkerView(2, card)}
    request = RouteRequest(id="a", token_ids=[1])
    assert router.select([request], workers) == [Route(2)]
    assert router.select([request], {1: workers[1]}) == [Hold(retry_after=0.1)]


async def test_the_engine_of_the_page_reverses_its_prompt():
    (spec,) = snippet("reverse").dynamo_engines()
    engine = spec.factory(None, None)
    request = EngineRequest(id="a", token_ids=[1, 2, 3], stop=StopConditions(max_tokens=2))
    chunks = [chunk async for chunk in engine.generate(request, Context())]
    assert [token for chunk in chunks for token in chunk.token_ids] == [3, 2]
    assert chunks[-1].finish_reason == "stop"


def test_the_configuration_of_the_page_is_a_strict_struct():
    config = snippet("quiet_hours").dynamo_config()
    assert config().start_hour == 22
    assert config.__struct_config__.forbid_unknown_fields


@pytest.mark.parametrize("name", ["first_fit", "reverse", "quiet_hours"])
def test_the_snippets_import_no_engine(name):
    snippet(name)
    assert not {"vllm", "sglang"} & set(sys.modules)
