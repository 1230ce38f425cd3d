import sys

import pytest

from dynamo_core.errors import PluginError
from dynamo_core.plugins import activate

LOG = """
import sys
@hookimpl
{mark}def dynamo_startup(process): sys.dynamo_test_log.append("+{name} " + process)
@hookimpl
{mark}def dynamo_shutdown(process): sys.dynamo_test_log.append("-{name}")
"""


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    events: list[str] = []
    monkeypatch.setattr(sys, "dynamo_test_log", events, raising=False)
    return events


async def test_startup_in_plugin_order_and_shutdown_in_reverse_sync_or_async(install, log: list[str]) -> None:
    install("one", LOG.format(mark="", name="one"))
    install("two", LOG.format(mark="async ", name="two"))
    compiled = activate(["one", "two"])
    await compiled.startup("worker")
    await compiled.shutdown("worker")
    assert log == ["+one worker", "+two worker", "-two", "-one"]
    await compiled.shutdown("worker")
    assert len(log) == 4


async def test_a_startup_that_raises_is_refused_and_those_before_it_are_shut_down(install, log: list[str]) -> None:
    install("one", LOG.format(mark="", name="one"))
    install("two", "@hookimpl\nasync def dynamo_startup(): raise OSError('no database')\n@hookimpl\ndef dynamo_shutdown(): 1 / 0")
    install("three", LOG.format(mark="", name="three"))
    with pytest.raises(PluginError, match=r"plugin 'two' .* fails in dynamo_startup: OSError: no database"):
        await activate(["one", "two", "three"]).startup("frontend")
    assert log == ["+one frontend", "-one"]


async def test_a_shutdown_that_raises_keeps_no_other_from_it(install, log: list[str], caplog) -> None:
    install("one", LOG.format(mark="", name="one"))
    install("two", "@hookimpl\ndef dynamo_shutdown(): raise ValueError('boom')")
    compiled = activate(["one", "two"])
    await compiled.startup("frontend")
    await compiled.shutdown("frontend")
    assert log[-1] == "-one"
    assert compiled.faults.counts == {("two", "dynamo_shutdown"): 1}
    assert "plugin 'two' raised in dynamo_shutdown" in caplog.text


async def test_a_successor_starts_what_is_added_and_leaves_what_is_removed_to_the_one_before(install, log: list[str]) -> None:
    for name in ("one", "two", "three"):
        install(name, LOG.format(mark="", name=name))
    earlier, later = activate(["one", "two"]), activate(["two", "three"])
    await earlier.startup("frontend")
    await later.lifecycle.succeed(earlier.lifecycle, "frontend")
    await earlier.shutdown("frontend")
    await later.shutdown("frontend")
    assert log == ["+one frontend", "+two frontend", "+three frontend", "-one", "-three", "-two"]


async def test_a_successor_that_cannot_start_leaves_everything_as_it_was(install, log: list[str]) -> None:
    for name in ("one", "two"):
        install(name, LOG.format(mark="", name=name))
    install("three", "@hookimpl\nasync def dynamo_startup(): raise OSError('no database')")
    earlier, later = activate(["one"]), activate(["one", "two", "three"])
    await earlier.startup("frontend")
    with pytest.raises(PluginError, match="fails in dynamo_startup: OSError: no database"):
        await later.lifecycle.succeed(earlier.lifecycle, "frontend")
    await earlier.shutdown("frontend")
    assert log == ["+one frontend", "+two frontend", "-two", "-one"]
