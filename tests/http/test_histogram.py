"""Our histogram against the client library's."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client import Histogram as LibraryHistogram

from dynamo_core.http.histogram import Histogram, log_buckets


@given(st.lists(st.floats(0, 100) | st.sampled_from([0.0, 1.0, 2.5, 7.0])))
def test_it_says_what_the_library_s_says(values: list[float]) -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    child = Histogram("h", "Doc.", (1.0, 2.5, 7.0), ours).child("m")
    reference = LibraryHistogram("h", "Doc.", ("model",), buckets=(1.0, 2.5, 7.0), registry=theirs).labels("m")
    for value in values:
        child.observe(value)
        reference.observe(value)
    lines = [line for line in generate_latest(theirs).splitlines() if b"_created" not in line]
    assert generate_latest(ours).splitlines() == lines


def test_an_observation_may_count_for_several() -> None:
    child = Histogram("h", "Doc.", (1.0,), CollectorRegistry()).child("m")
    child.observe(0.5, 3)
    child.observe(2.0, 2)
    assert child.counts == [3, 2]
    assert child.total == 5.5


def test_buckets_are_dynamo_s() -> None:
    assert log_buckets(1, 512, 10) == (0.0, 1.0, 2.2, 4.8, 10.0, 23.0, 49.0, 110.0, 230.0, 510.0)
    assert len(log_buckets(0.001, 480, 18)) == 18
