"""Lines that are logged for a request say which."""

from __future__ import annotations

import asyncio
import io
import json
import logging

import pytest

from dynamo_core.runtime import Context, DistributedRuntime
from dynamo_core.runtime.logging import REQUEST_ID, configure_dynamo_logging

log = logging.getLogger("test_request_id")


@pytest.fixture(autouse=True)
def _restore() -> None:
    yield
    configure_dynamo_logging("info", stream=io.StringIO())


async def test_what_a_worker_logs_for_a_request_has_its_id_and_the_process() -> None:
    stream = io.StringIO()
    configure_dynamo_logging("info", jsonl=True, process="worker-0", stream=stream)

    async def handler(request, context):
        log.info("asked")
        await asyncio.sleep(0)
        log.info("still at it")
        yield 1

    async with DistributedRuntime(None, "mem", "inproc", event_plane="inproc") as runtime:
        serving = asyncio.create_task(runtime.endpoint("a.b.c").serve_endpoint(handler))
        client = await runtime.endpoint("a.b.c").client()
        await client.wait_for_instances()
        assert [item async for item in client.generate({}, context=Context("req-7"), annotated=False)] == [1]
        log.info("between requests")
        await runtime.shutdown()
        await serving
    lines = [json.loads(line) for line in stream.getvalue().splitlines() if "test_request_id" in line]
    assert [(line["message"], line.get("request"), line["process"]) for line in lines] == [
        ("asked", "req-7", "worker-0"),
        ("still at it", "req-7", "worker-0"),
        ("between requests", None, "worker-0"),
    ]


def test_a_message_that_names_its_request_does_not_name_it_twice() -> None:
    stream = io.StringIO()
    configure_dynamo_logging("info", stream=stream)
    token = REQUEST_ID.set("req-8")
    log.info("request req-8 moves")
    log.info("it moves")
    REQUEST_ID.reset(token)
    first, second = stream.getvalue().splitlines()
    assert first.endswith(": request req-8 moves")
    assert second.endswith(": it moves request=req-8")
