"""Stands between client and server, and passes the context on: a cancelled client stops the server behind it.

python middle_server.py
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from dynamo_core.runtime import Client, Context, DistributedRuntime, dynamo_worker


class Middle:
    def __init__(self, backend: Client) -> None:
        self.backend = backend

    async def generate(self, request: Any, context: Context) -> AsyncIterator[Any]:
        print("Middle: forwarding a request", flush=True)
        async for response in await self.backend.generate(request, context=context):  # without context=, cancelling ends here
            yield response.data()
        print("Middle: the server's stream ended", flush=True)


@dynamo_worker()
async def worker(runtime: DistributedRuntime) -> None:
    backend = await runtime.namespace("demo").component("server").endpoint("generate").client()
    await backend.wait_for_instances()
    component = runtime.namespace("demo").component("middle")
    await component.create_service()
    print("Middle: started", flush=True)
    await component.endpoint("generate").serve_endpoint(Middle(backend).generate)


if __name__ == "__main__":
    asyncio.run(worker())
