"""Plugin ``mocker``: an engine that takes a real engine's time and memory, and computes nothing."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from dynamo_core.contracts import EngineContext
from dynamo_core.hookspecs import hookimpl
from dynamo_core.specs import EngineSpec

__all__ = ["dynamo_engines"]


def _make(config: Any, context: EngineContext) -> Any:
    from dynamo_mocker.engine import MockEngine

    return MockEngine(config, context)


@hookimpl
def dynamo_engines() -> Iterable[EngineSpec]:
    yield EngineSpec(
        name="mocker",
        factory=_make,
        needs_model=False,
        kv_events=True,
        description="Simulated engine: timing model, paged KV cache, KV events, vLLM's metric names.",
    )
