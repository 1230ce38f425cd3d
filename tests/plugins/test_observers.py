import sys

import prometheus_client
import pytest

from dynamo_core.contracts.gate import RequestSummary
from dynamo_core.errors import PluginError
from dynamo_core.plugins import activate
from dynamo_core.plugins.observers import QUARANTINE_AFTER
from dynamo_core.specs import MetricsContext

COUNTING = "seen = []\n@hookimpl\ndef dynamo_request_finished(summary): seen.append(summary.id)"
RAISING = """
seen = []
fail = True
@hookimpl
def dynamo_request_finished(summary, config):
    seen.append(summary.id)
    if fail:
        raise ValueError("boom")
"""


def test_an_observer_that_raises_is_logged_and_counted_and_the_others_are_told(install, summary: RequestSummary, caplog) -> None:
    install("bad", RAISING)
    good = install("good", COUNTING)
    compiled = activate(["bad", "good"])
    assert compiled.finished(summary) is None
    assert sys.modules[good].seen == ["r1"]
    assert compiled.faults.counts == {("bad", "dynamo_request_finished"): 1}
    assert "plugin 'bad' raised in dynamo_request_finished" in caplog.text
    assert "ValueError: boom" in caplog.text


def test_an_observer_that_keeps_raising_is_quarantined(install, summary: RequestSummary, caplog) -> None:
    module = install("bad", RAISING)
    compiled = activate(["bad"])
    for _ in range(QUARANTINE_AFTER + 5):
        compiled.finished(summary)
    assert len(sys.modules[module].seen) == QUARANTINE_AFTER
    assert compiled.faults.counts == {("bad", "dynamo_request_finished"): QUARANTINE_AFTER}
    assert caplog.text.count("10 times in a row: it is not told of requests any more") == 1


def test_one_success_forgives_an_observer(install, summary: RequestSummary) -> None:
    module = sys.modules.get(install("bad", RAISING))
    compiled = activate(["bad"])
    module = sys.modules["plugin_under_test_0"]
    for _ in range(3):
        module.fail = True
        for _ in range(QUARANTINE_AFTER - 1):
            compiled.finished(summary)
        module.fail = False
        compiled.finished(summary)
    assert len(module.seen) == 3 * QUARANTINE_AFTER


METRICS = """
import prometheus_client
def make(config, context):
    counter = prometheus_client.Counter(f"{context.prefix}_acme", "Requests.", registry=context.registry)
    return lambda summary: counter.inc()
@hookimpl
def dynamo_metrics(): yield MetricsSpec(name="NAME", factory=make)
"""


def context() -> MetricsContext:
    return MetricsContext(registry=prometheus_client.CollectorRegistry(), prefix="dynamo_frontend")


def test_metrics_are_made_on_the_registry_and_observe_with_the_others(install, summary: RequestSummary) -> None:
    module = install("acme", METRICS.replace("NAME", "acme") + COUNTING)
    compiled = activate(["acme"])
    assert compiled.plugins[0].provides == ("metrics:acme", "hook:dynamo_request_finished")
    where = context()
    finished = compiled.start_metrics(where)
    finished(summary)
    assert where.registry.get_sample_value("dynamo_frontend_acme_total") == 1
    assert sys.modules[module].seen == ["r1"]


def test_two_metrics_of_one_name_are_refused_with_the_plugin(install) -> None:
    install("one", METRICS.replace("NAME", "one"))
    install("two", METRICS.replace("NAME", "two"), version="2.0")
    with pytest.raises(PluginError, match=r"plugin 'two' \(two-plugin 2.0\) cannot make its metrics 'two': .*Duplicated"):
        activate(["one", "two"]).start_metrics(context())


def test_without_observers_there_is_nothing_to_call(install) -> None:
    install("acme", "@hookimpl\ndef dynamo_metrics(): yield MetricsSpec(name='acme', factory=lambda config, context: None)")
    assert activate(["acme"]).start_metrics(context()) is None
