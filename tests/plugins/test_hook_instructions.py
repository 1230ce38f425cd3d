"""A guard on what hooks cost, in instructions of the interpreter instead of seconds: the same count on every machine.

0.2 µs are about 30 of them here; `benchmarks/plugin_hooks.py` has the times.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest

from dynamo_core.contracts import HttpRequestInfo, PreparedRequest, RequestSummary
from dynamo_core.plugins import Compiled, activate

INFO = HttpRequestInfo(id="1", method="POST", path="/v1/completions", headers={}, client="127.0.0.1")
PREPARED = PreparedRequest(
    id="1", model="m", endpoint="chat", principal=None, headers={}, body=None, token_ids=[1], max_tokens=1
)  # fmt: skip
SUMMARY = RequestSummary(id="1", model="m", endpoint="chat", principal=None, status=200, outcome="completed")
PLUGIN = """
from dynamo_core import hookimpl
from dynamo_core.contracts import Principal

ANN = Principal(id="ann")

@hookimpl
def dynamo_authenticate(request):
    return ANN

@hookimpl
def dynamo_rate_limit(request, principal):
    return None

@hookimpl
def dynamo_prepare(request):
    return None

@hookimpl
def dynamo_request_finished(summary):
    return None
"""


def instructions(function: Callable[..., Any], *arguments: Any) -> int:
    """Bytecode instructions that one call executes, those of everything it calls included."""
    count = 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal count
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        count += event == "opcode"
        return trace

    function(*arguments)  # the second call runs what the interpreter has specialised
    before = sys.gettrace()
    sys.settrace(trace)
    try:
        function(*arguments)
    finally:
        sys.settrace(before)
    return count


@pytest.fixture
def compiled(install: Any) -> Compiled:
    install("cheap", PLUGIN)
    return activate(["cheap"])


@pytest.mark.parametrize(
    ("hook", "arguments"),
    [("authenticate", (INFO,)), ("rate_limit", (INFO, None)), ("prepare", (PREPARED,)), ("finished", (SUMMARY,))],
)
def test_an_active_synchronous_hook_costs_at_most_thirty_instructions_beside_its_own_work(compiled, hook, arguments):
    own_work = 4
    assert 0 < instructions(getattr(compiled, hook), *arguments) - own_work <= 30


def test_an_unused_seam_is_none_and_costs_one_test():
    compiled = activate([])

    def seam(hook: Callable[[Any], Any] | None) -> None:
        if hook is not None:
            hook(INFO)

    def nothing(hook: Callable[[Any], Any] | None) -> None:
        return

    for name in ("authenticate", "rate_limit", "prepare", "finished", "output_filter"):
        hook = getattr(compiled, name)
        assert hook is None
        assert instructions(seam, hook) - instructions(nothing, hook) <= 3
