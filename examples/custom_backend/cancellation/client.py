"""Reads three numbers and cancels.

python client.py             from the server
python client.py --middle    through the middle server
"""

import asyncio
import sys
from typing import Any

from dynamo_core.runtime import Client, Context, DistributedRuntime, dynamo_worker


async def read_three(client: Client) -> list[Any]:
    """What came before the stream ended; a number that was on its way may follow the third."""
    context = Context()
    numbers: list[Any] = []
    async for response in await client.generate("count", context=context):
        print(f"Client: received {response.data()}", flush=True)
        numbers.append(response.data())
        if len(numbers) == 3:
            print("Client: cancelling", flush=True)
            context.stop_generating()
    print("Client: the stream ended", flush=True)
    return numbers


@dynamo_worker()
async def worker(runtime: DistributedRuntime, component: str) -> None:
    client = await runtime.namespace("demo").component(component).endpoint("generate").client()
    await client.wait_for_instances()
    await read_three(client)


if __name__ == "__main__":
    asyncio.run(worker("middle" if "--middle" in sys.argv[1:] else "server"))
