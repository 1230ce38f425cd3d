"""What vLLM is asked for when its worker sleeps. Without vLLM: its sleep mode needs a GPU."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from dynamo_core.contracts import EngineContext
from dynamo_vllm.engine import VllmEngine


class Llm:
    def __init__(self, *, sleeps: bool) -> None:
        self.asked: list[str] = []
        self.vllm_config = SimpleNamespace(model_config=SimpleNamespace(enable_sleep_mode=sleeps))

    async def sleep(self, level: int) -> None:
        self.asked.append(f"sleep {level}")

    async def wake_up(self) -> None:
        self.asked.append("wake")


@pytest.mark.parametrize(("sleeps", "asked"), [(True, ["clear", "sleep 1", "wake"]), (False, ["clear"])])
async def test_sleep_mode_is_used_where_it_was_enabled_and_the_cache_emptied_first(
    sleeps: bool, asked: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    engine: Any = VllmEngine(None, EngineContext(model_path="", model_name="m", worker_id=1, args={}))
    llm = engine._llm = Llm(sleeps=sleeps)

    async def clear() -> None:
        llm.asked.append("clear")

    monkeypatch.setattr(engine, "clear_cache", clear)
    await engine.sleep()
    await engine.wake()
    assert llm.asked == asked
    assert ("enable_sleep_mode" in caplog.text) is not sleeps
