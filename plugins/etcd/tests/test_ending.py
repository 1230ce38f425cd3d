from __future__ import annotations

import asyncio

from dynamo_etcd.ending import end


async def test_a_task_that_loses_a_cancellation_is_cancelled_again() -> None:
    lost = 0

    async def keeps_calling() -> None:
        nonlocal lost
        while True:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                lost += 1
                if lost > 1:
                    raise

    async def fails() -> None:
        raise ValueError("nobody asks for it")

    tasks = [asyncio.create_task(keeps_calling()), asyncio.create_task(fails())]
    await asyncio.sleep(0)
    async with asyncio.timeout(10):
        await end(tasks)
    assert lost == 2
    assert tasks[0].cancelled()
    async with asyncio.timeout(10):
        await end(tasks)
