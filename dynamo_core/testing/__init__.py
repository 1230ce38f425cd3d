"""For the tests of backends and plugins; see ``docs/testing.md``. Needs pytest only where a contract suite is subclassed."""

from dynamo_core.testing.clock import FakeClock
from dynamo_core.testing.cluster import InprocCluster
from dynamo_core.testing.engine_contract import EngineContract
from dynamo_core.testing.router_contract import RouterContract
from dynamo_core.testing.scripted_engine import ScriptedEngine, engine_context, next_token, scripted_engine

__all__ = [
    "EngineContract",
    "FakeClock",
    "InprocCluster",
    "RouterContract",
    "ScriptedEngine",
    "engine_context",
    "next_token",
    "scripted_engine",
]
