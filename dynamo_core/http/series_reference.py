"""The table of series in ``docs/metrics.md``, made from what a scrape tells.

``python -m dynamo_core.http.series_reference docs/metrics.md`` renews it in place.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
from prometheus_client import Metric

from dynamo_core.contracts import EngineLoad, ModelCard, WorkerView
from dynamo_core.contracts.gate import RequestSummary
from dynamo_core.http.model_series import ModelCollector, ObservedModel
from dynamo_core.http.observe import FrontendMetrics
from dynamo_core.plugins import Faults
from dynamo_core.runtime.stores import StoreCollector, StoreState
from dynamo_core.serving.dispatch import DispatchCounters
from dynamo_core.serving.prompt_encoder import PromptCacheCounters

__all__ = ["MARK_BEGIN", "MARK_END", "series_markdown", "with_series"]

MARK_BEGIN = "<!-- series: made by python -m dynamo_core.http.series_reference -->"
MARK_END = "<!-- end of series -->"

_SUFFIXES = {"counter": "_total", "gauge": "", "histogram": "", "info": "_info"}


def series_markdown() -> str:
    """A table of every series of a frontend: name, type, labels, meaning."""
    rows = ["| Series | Type | Labels | Meaning |", "|---|---|---|---|"]
    rows += [_row(family) for family in _families() if not family.name.endswith("_created")]
    return "\n".join(rows) + "\n"


def with_series(document: str) -> str:
    """``document`` with the table between its two marks renewed. Raises :class:`ValueError` where the marks are missing."""
    before, begin, rest = document.partition(MARK_BEGIN)
    _, end, after = rest.partition(MARK_END)
    if not begin or not end:
        raise ValueError(f"the document lacks the lines {MARK_BEGIN!r} and {MARK_END!r}")
    return f"{before}{MARK_BEGIN}\n\n{series_markdown()}\n{MARK_END}{after}"


def _families() -> list[Metric]:
    """What a frontend tells after one request of each outcome: a series has labels only where something was counted."""
    metrics = FrontendMetrics()
    card = ModelCard(name="m", path="")
    worker = WorkerView(1, card, EngineLoad())
    model = cast(
        "ObservedModel",
        SimpleNamespace(
            name="m",
            card=card,
            ready=True,
            waiting=0,
            counters=DispatchCounters(),
            workers={1: worker},
            prompt_encoder=SimpleNamespace(counters=PromptCacheCounters()),
        ),
    )
    faults = cast("Faults", SimpleNamespace(counts={("plugin", "hook"): 1}))
    metrics.registry.register(ModelCollector(metrics.prefix, lambda: [model], [faults], 0))
    metrics.registry.register(StoreCollector(metrics.prefix, lambda: {"discovery": StoreState("etcd", "up")}))
    completed = RequestSummary(
        id="", model="m", endpoint="chat", principal=None, status=200, outcome="completed", ttft=1.0, duration=1.0
    )
    cancelled = msgspec.structs.replace(completed, status=499, outcome="cancelled")
    rejected = msgspec.structs.replace(completed, status=429, outcome="rejected")
    for summary in (completed, cancelled, rejected):
        exchange: Any = SimpleNamespace(model=None)
        metrics.admitted(exchange, "m")
        metrics.finished(None, exchange, summary)
    return list(metrics.registry.collect())


def _row(family: Metric) -> str:
    labels = sorted({label for sample in family.samples for label in sample.labels} - {"le"})
    shown = ", ".join(f"`{label}`" for label in labels) or "—"
    name = family.name + _SUFFIXES.get(family.type, "")
    return f"| `{name}` | {family.type} | {shown} | {family.documentation} |"


def _main(path: str) -> None:
    document = Path(path)
    document.write_text(with_series(document.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    _main(*sys.argv[1:])
