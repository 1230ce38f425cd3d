"""Prometheus text of several processes as one: parsed, summed, labelled, joined and written again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from prometheus_client import Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

__all__ = ["PROCESS_LABEL", "Rendered", "cumulative", "joined", "labelled", "read_families", "render", "summed"]

PROCESS_LABEL = "process"
"""Of series that are one process's own business (memory, open files) and mean nothing as a sum."""

_PROCESS = ("process_", "python_")
_FACTS = ("_model_", "_worker_")
"""In the names of gauges that every frontend tells alike: their sum would mean nothing either."""
_CUMULATIVE = frozenset({"counter", "histogram", "summary"})

_Key = tuple[str, tuple[tuple[str, str], ...]]


class Rendered(NamedTuple):
    body: bytes
    content_type: str


def read_families(text: bytes | str) -> list[Metric]:
    """Raises :class:`ValueError` for what is no Prometheus text."""
    return list(text_string_to_metric_families(text.decode() if isinstance(text, bytes) else text))


def summed(processes: Mapping[str, Iterable[Metric]]) -> list[Metric]:
    """One family each, with series of equal name and labels added up.

    Counters, histograms and gauges are sums; gauges that state a fact about a model or a worker are the largest; times of
    creation the earliest; what belongs to a process has its name as a label.
    """
    totals: dict[str, tuple[Metric, dict[_Key, Sample]]] = {}
    for process, families in processes.items():
        for family in families:
            _, samples = totals.setdefault(family.name, (_empty(family), {}))
            own = {PROCESS_LABEL: process} if family.name.startswith(_PROCESS) else {}
            for told in family.samples:
                sample = told._replace(labels={**told.labels, **own}) if own else told
                key = _key(sample)
                earlier = samples.get(key)
                samples[key] = sample if earlier is None else earlier._replace(value=_combined(family, earlier, sample))
    for metric, samples in totals.values():
        metric.samples.extend(samples.values())
    return [metric for metric, _ in totals.values()]


def labelled(parts: Mapping[str, Iterable[Metric]], label: str) -> list[Metric]:
    """Every part's families, each sample with the part's name as ``label``."""
    return joined(
        *(
            [
                _with(family, [sample._replace(labels={**sample.labels, label: name}) for sample in family.samples])
                for family in families
            ]
            for name, families in parts.items()
        )
    )


def joined(*parts: Iterable[Metric]) -> list[Metric]:
    """Families of one name together, under the first one's type and help. Of equal series the first counts."""
    found: dict[str, tuple[Metric, set[_Key]]] = {}
    for families in parts:
        for family in families:
            target, seen = found.setdefault(family.name, (_empty(family), set()))
            for sample in family.samples:
                key = _key(sample)
                if key not in seen:
                    seen.add(key)
                    target.samples.append(sample)
    return [metric for metric, _ in found.values()]


def cumulative(families: Iterable[Metric]) -> list[Metric]:
    """What keeps its meaning when its process is gone: counters, histograms and summaries of requests."""
    return [family for family in families if family.type in _CUMULATIVE and not family.name.startswith(_PROCESS)]


def render(families: Iterable[Metric], accept: str = "") -> Rendered:
    """As Prometheus text, or as OpenMetrics where ``accept`` asks for that."""
    encode, content_type = choose_encoder(accept)
    return Rendered(encode(_Families(list(families))), content_type)


class _Families(Collector):
    """Stands in for a registry: the encoders only collect."""

    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


def _combined(family: Metric, earlier: Sample, sample: Sample) -> float:
    if family.name.endswith("_created") or sample.name.endswith("_created"):
        return min(earlier.value, sample.value)
    if family.type == "info" or (family.type == "gauge" and any(part in family.name for part in _FACTS)):
        return max(earlier.value, sample.value)
    return earlier.value + sample.value


def _empty(family: Metric) -> Metric:
    return Metric(family.name, family.documentation, family.type)


def _with(family: Metric, samples: list[Sample]) -> Metric:
    metric = _empty(family)
    metric.samples = samples
    return metric


def _key(sample: Sample) -> _Key:
    return sample.name, tuple(sorted(sample.labels.items()))
