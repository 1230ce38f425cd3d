"""Our own engines and routers against the suites that authors of plugins subclass."""

from __future__ import annotations

from typing import Any

import pytest

from dynamo_core.builtins.echo import EchoEngine
from dynamo_core.builtins.round_robin import RoundRobin
from dynamo_core.plugins import activate
from dynamo_core.testing import EngineContract, RouterContract, ScriptedEngine, engine_context
from dynamo_core.testing.provision import required_module


class TestEcho(EngineContract):
    prompt = tuple(range(5, 505))
    endless = 400

    def make_engine(self) -> Any:
        return EchoEngine(None, engine_context(args={"delay_ms": 1}))


class TestMocker(EngineContract):
    def make_engine(self) -> Any:
        required_module("dynamo_mocker")
        provider = activate(("mocker",)).engine("mocker")
        return provider.spec.factory(provider.config, engine_context(args={"speedup_ratio": 10}))


class TestScripted(EngineContract):
    def make_engine(self) -> Any:
        return ScriptedEngine(engine_context())


class TestRoundRobin(RouterContract):
    def make_router(self, context: Any) -> Any:
        return RoundRobin(None, context)


class TestKvRouter(RouterContract):
    def make_router(self, context: Any) -> Any:
        required_module("dynamo_kv_router")
        provider = activate(("kv-router",)).router("kv-router")
        return provider.spec.factory(provider.config, context)


@pytest.mark.parametrize("name", ["random", "power-of-two", "least-loaded", "least-tokens", "prefix-hash", "cache-aware"])
class TestLots(RouterContract):
    name = ""

    @pytest.fixture(autouse=True)
    def _named(self, name: str) -> None:
        self.name = name

    def make_router(self, context: Any) -> Any:
        provider = activate((self.name,)).router(self.name)
        return provider.spec.factory(provider.config, context)
