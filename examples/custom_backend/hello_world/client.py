"""Asks hello_world.py for greetings, again and again. Restart the server meanwhile: the client comes back by itself.

python client.py
"""

import asyncio
import os
from collections.abc import Awaitable, Callable

import uvloop

from dynamo_core.runtime import Client, DistributedRuntime, dynamo_worker

FIRST_PAUSE, LONGEST_PAUSE = 0.1, 5.0


async def greetings(client: Client) -> None:
    async for response in await client.generate("world,sun,moon,star"):
        print(response.data(), flush=True)


async def repeat(
    ask: Callable[[], Awaitable[None]], *, rounds: int | None = None, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
) -> None:
    """Ask once a second. After a failure wait 0.1 s, and twice as long after each further one, up to 5 s."""
    pause = FIRST_PAUSE
    number = 0
    while rounds is None or number < rounds:
        number += 1
        try:
            await ask()
            pause = FIRST_PAUSE
            await sleep(1.0)
        except asyncio.CancelledError:
            raise
        except Exception as error:  # noqa: BLE001  # whatever it was, the next round may work
            print(f"Round {number} failed: {type(error).__name__}: {error}", flush=True)
            print(f"Trying again after {pause:.2f} s", flush=True)
            await sleep(pause)
            pause = min(pause * 2, LONGEST_PAUSE)


@dynamo_worker()
async def worker(runtime: DistributedRuntime) -> None:
    namespace = os.environ.get("DYN_TEST_HELLO_WORLD_NAMESPACE", "hello_world")
    client = await runtime.endpoint(f"{namespace}.backend.generate").client()
    await client.wait_for_instances()
    await repeat(lambda: greetings(client))


if __name__ == "__main__":
    uvloop.run(worker())
