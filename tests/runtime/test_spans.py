"""Spans of a request nest, reach the next hop as its parent, and are told when they end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from dynamo_core.contracts import Context
from dynamo_core.runtime import DistributedRuntime

TRACE, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
LOGGER = "dynamo_core.contracts.span"


def test_spans_nest_within_the_callers_and_the_headers_follow(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, LOGGER)
    context = Context(trace_headers={"traceparent": f"00-{TRACE}-{CALLER}-00"})
    assert (context.trace_id, context.span_id, context.parent_span_id) == (TRACE, None, CALLER)
    with context.start_span("outer", {"a": 1}) as outer:
        assert (outer.trace_id, outer.parent_span_id, context.span_id) == (TRACE, CALLER, outer.span_id)
        assert context.trace_headers["traceparent"] == f"00-{TRACE}-{outer.span_id}-00"
        inner = context.start_span("inner")
        assert (inner.parent_span_id, context.current_span(), context.parent_span_id) == (outer.span_id, inner, CALLER)
        inner.set_attribute("b", 2)
        inner.add_event("half", {"c": 3})
        inner.set_status("ok")
        inner.end()
        inner.end()
        assert context.current_span() is outer
    assert context.trace_headers["traceparent"] == f"00-{TRACE}-{CALLER}-00"
    first, second = [record.getMessage() for record in caplog.records]
    assert "span inner took" in first
    assert f"status ok, trace {TRACE}, span {inner.span_id}, parent {outer.span_id} {{'b': 2}}" in first
    assert "ms half{'c': 3}]" in first
    assert "span outer took" in second


def test_without_a_trace_a_span_begins_one_and_an_error_is_its_status() -> None:
    context = Context("r")
    span = context.start_span("look up")
    assert context.trace_id == span.trace_id
    assert span.parent_span_id is None
    with pytest.raises(LookupError), span:
        raise LookupError("nothing")
    assert span.status == "error: LookupError: nothing"
    assert (context.trace_id, context.trace_headers()) == (None, {})


def test_a_span_that_ends_ends_those_within_it() -> None:
    context = Context()
    outer = context.current_span()
    assert outer.attributes == {"request_id": context.id()}
    context.start_span("a")
    context.start_span("b")
    outer.end()
    assert context.span_id is None
    assert "traceparent" not in context.trace_headers


async def test_the_next_hop_sees_the_span_as_its_parent_and_the_server_ends_what_was_left_open(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, LOGGER)

    async def last(request: Any, context: Context) -> AsyncIterator[Any]:
        yield [context.trace_id, context.parent_span_id]

    async with DistributedRuntime(file_kv=str(tmp_path / "kv"), event_plane="inproc") as runtime:
        client = await runtime.endpoint("n.last.e").client()

        async def middle(request: Any, context: Context) -> AsyncIterator[Any]:
            context.current_span().set_attribute("left", "open")
            with context.start_span("call") as span:
                async for item in client.generate(request, context=context, annotated=False):
                    yield [*item, span.span_id]
            context.notify_first_token()

        tasks = [asyncio.create_task(runtime.endpoint(f"n.{name}.e").serve_endpoint(handler)) for name, handler in
                 (("last", last), ("middle", middle))]  # fmt: skip
        caller = await runtime.endpoint("n.middle.e").client()
        await asyncio.gather(client.wait_for_instances(10), caller.wait_for_instances(10))
        context = Context(trace_headers={"traceparent": f"00-{TRACE}-{CALLER}-01"})
        ((trace, parent, span),) = [item async for item in caller.generate(1, context=context, annotated=False)]
        assert (trace, parent) == (TRACE, span)
    await asyncio.gather(*tasks)
    told = [record.getMessage() for record in caplog.records if record.name == LOGGER]
    assert [message.split(" took")[0] for message in told] == ["span call", "span request"]
    assert f"parent {CALLER}" in told[1]
