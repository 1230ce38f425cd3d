from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest

from dynamo_core.http.count import CounterFamily, GaugeFamily


def test_it_exposes_what_the_client_library_does() -> None:
    ours, theirs = CollectorRegistry(auto_describe=True), CollectorRegistry(auto_describe=True)
    counter, gauge = CounterFamily("c", "Doc.", ("model", "status"), ours), GaugeFamily("g", "Doc.", ("model",), ours)
    counter.child("m", "ok").add()
    counter.child("m", "ok").add(41)
    counter.child('odd "name"\n', "error").add(0)
    gauge.child("m").add(3)
    gauge.child("m").add(-1)
    their_counter = Counter("c", "Doc.", ("model", "status"), registry=theirs)
    their_counter.labels("m", "ok").inc(42)
    their_counter.labels('odd "name"\n', "error")
    Gauge("g", "Doc.", ("model",), registry=theirs).labels("m").set(2)
    lines = [line for line in generate_latest(theirs).splitlines() if b"_created" not in line]
    assert generate_latest(ours).splitlines() == lines


def test_two_families_of_one_name_are_refused() -> None:
    registry = CollectorRegistry(auto_describe=True)
    CounterFamily("c", "Doc.", (), registry)
    with pytest.raises(ValueError, match="Duplicated"):
        CounterFamily("c", "Doc.", (), registry)
