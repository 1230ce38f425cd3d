"""Counts to 999, ten numbers a second, until it is asked to stop.

python server.py
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from dynamo_core.runtime import Context, DistributedRuntime, dynamo_worker

STEP_SECONDS = 0.1


class Counter:
    def __init__(self, step: float = STEP_SECONDS) -> None:
        self.step = step

    async def generate(self, request: Any, context: Context) -> AsyncIterator[int]:
        for number in range(1000):
            if context.is_stopped():
                print(f"Server: cancelled before {number}", flush=True)
                raise asyncio.CancelledError
            await asyncio.sleep(self.step)
            print(f"Server: sending {number}", flush=True)
            yield number


@dynamo_worker()
async def worker(runtime: DistributedRuntime) -> None:
    component = runtime.namespace("demo").component("server")
    await component.create_service()
    print("Server: started", flush=True)
    await component.endpoint("generate").serve_endpoint(Counter().generate)


if __name__ == "__main__":
    asyncio.run(worker())
