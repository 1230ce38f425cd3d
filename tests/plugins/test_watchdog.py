"""A plugin that blocks the event loop is named with the time and the line."""

import asyncio
import logging
import threading

import pytest
import uvloop

from dynamo_core.contracts.gate import HttpRequestInfo
from dynamo_core.plugins import LoopWatchdog, activate
from dynamo_core.plugins.installed import PluginInfo

BLOCKING = """
import time
def wait(seconds): time.sleep(seconds)
@hookimpl
def dynamo_rate_limit(request): wait(1.0)
"""


@pytest.mark.parametrize("factory", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_hook_that_blocks_for_a_second_is_named_with_the_time(install, request_info: HttpRequestInfo, caplog, factory) -> None:
    module = install("sleepy", BLOCKING)
    compiled = activate(["sleepy"])

    async def serve() -> None:
        with compiled.watchdog():
            await asyncio.sleep(0.15)
            compiled.rate_limit(request_info, None)
            await asyncio.sleep(0.15)

    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(serve())
    (record,) = [record for record in caplog.records if "blocked the event loop" in record.message]
    assert record.levelno == logging.WARNING
    assert "plugin 'sleepy' blocked the event loop for 1." in record.message or "for 0.9 s" in record.message
    assert f"in {module}.wait, line 7" in record.message


def test_after_a_reload_the_plugins_of_then_are_named(install, request_info: HttpRequestInfo, caplog) -> None:
    install("sleepy", BLOCKING.replace("1.0", "0.7"))
    compiled = activate(["sleepy"])

    async def serve() -> None:
        with LoopWatchdog([]) as watchdog:
            await asyncio.sleep(0)
            watchdog.know(compiled.plugins)
            compiled.rate_limit(request_info, None)
            await asyncio.sleep(0.15)

    asyncio.run(serve())
    assert "plugin 'sleepy' blocked the event loop" in caplog.text


async def test_a_loop_that_runs_is_left_alone_and_the_thread_ends(caplog) -> None:
    with LoopWatchdog([]):
        assert "loop watchdog" in [thread.name for thread in threading.enumerate()]
        for _ in range(4):
            await asyncio.sleep(0.1)
    assert "loop watchdog" not in [thread.name for thread in threading.enumerate()]
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_code_of_nobody_is_told_by_its_place(caplog) -> None:
    import time

    with LoopWatchdog([], threshold=0.2):
        await asyncio.sleep(0)
        time.sleep(0.5)  # noqa: ASYNC251  # blocking is what is tested
        await asyncio.sleep(0.15)
    assert "test_code_of_nobody_is_told_by_its_place, line" in caplog.text


def test_a_plane_is_blamed_only_for_its_own_code() -> None:
    import sys

    plugins = [
        PluginInfo(name="plane", target="plane_module", provides=("request-plane:plane",)),
        PluginInfo(name="policy", target="policy_package.hooks", provides=("router:policy",)),
    ]
    watchdog = LoopWatchdog(plugins)

    def called(*modules: str) -> str | None:
        """Who is blamed for a stack of functions of these modules, outermost first."""
        source = "def call(rest, look):\n    return rest[0](rest[1:], look) if rest else look()"
        functions = []
        for module in modules:
            names: dict = {"__name__": module}
            exec(source, names)
            functions.append(names["call"])
        return functions[0](functions[1:], lambda: watchdog._culprit(sys._getframe(1)).plugin)

    assert called("plane_module", "policy_package.scores") == "policy"
    assert called("policy_package.scores", "dynamo_core.kv.hashing") == "policy"
    assert called("plane_module", "dynamo_core.serving.choice") is None
    assert called("dynamo_core.serving.choice", "plane_module") == "plane"
