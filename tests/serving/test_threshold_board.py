"""Thresholds that one frontend is told hold for all of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any

import pytest

from dynamo_core.contracts import BusyThresholds
from dynamo_core.runtime import DistributedRuntime
from dynamo_core.serving.threshold_board import ThresholdBoard

HALF = BusyThresholds(active_decode_blocks_threshold=0.5)
MODEL = "org/a model"


class Told(SimpleNamespace):
    """A model that writes down what it is told."""

    def set_busy_thresholds(self, thresholds: BusyThresholds) -> None:
        self.thresholds.append(thresholds)


def frontend_on(runtime: DistributedRuntime, namespace: str = "ns") -> tuple[ThresholdBoard, Told]:
    told = Told(name=MODEL, thresholds=[])
    board = ThresholdBoard(runtime, namespace, {MODEL: told})  # type: ignore[dict-item]
    return board, told


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110  # what another process's store says has no event here
            await asyncio.sleep(0.01)


@pytest.fixture
async def runtimes(tmp_path: Any) -> AsyncIterator[list[DistributedRuntime]]:
    made = [
        DistributedRuntime(None, "file", "inproc", event_plane="inproc", file_kv=str(tmp_path / "kv"), run_dir=str(tmp_path))
        for _ in range(3)
    ]
    for runtime in made:
        await runtime.start()
    yield made
    for runtime in made:
        await runtime.shutdown()


async def test_what_one_frontend_is_told_reaches_the_others_and_outlives_it(runtimes: list[DistributedRuntime]) -> None:
    first, second, third = runtimes
    (board, told), (other, heard) = frontend_on(first), frontend_on(second)
    board.start()
    other.start()
    await board.set(MODEL, HALF)
    assert told.thresholds == [HALF]
    await until(lambda: heard.thresholds)
    assert heard.thresholds == [HALF]
    async with asyncio.timeout(10):
        while len(await second.discovery.get_prefix("thresholds/ns/")) < 2:  # noqa: ASYNC110  # as above
            await asyncio.sleep(0.01)
    await board.close()
    await first.shutdown()
    late, learned = frontend_on(third)
    late.start()
    await until(lambda: learned.thresholds)
    assert learned.thresholds == [HALF]
    fresh = Told(name=MODEL, thresholds=[])
    late.apply(fresh)  # type: ignore[arg-type]
    assert fresh.thresholds == [HALF]
    await other.close()
    await late.close()


async def test_another_namespace_and_what_is_no_notice_change_nothing(
    runtimes: list[DistributedRuntime], caplog: pytest.LogCaptureFixture
) -> None:
    board, told = frontend_on(runtimes[0])
    stranger, _ = frontend_on(runtimes[1], "elsewhere")
    board.start()
    await runtimes[1].discovery.put("thresholds/ns/zz/1", b"{}")
    await until(lambda: "holds no thresholds" in caplog.text)
    await stranger.set(MODEL, HALF)
    await board.set(MODEL, BusyThresholds())
    await board.close()
    assert told.thresholds == [BusyThresholds()]
