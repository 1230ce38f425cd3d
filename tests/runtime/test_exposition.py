from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from dynamo_core.runtime.exposition import cumulative, joined, labelled, read_families, render, summed

ONE = """
# TYPE r_total counter
r_total{model="m"} 3
# TYPE r_created gauge
r_created{model="m"} 50
# TYPE h histogram
h_bucket{le="1.0"} 1
h_bucket{le="+Inf"} 2
h_count 2
h_sum 5
# TYPE p_inflight gauge
p_inflight{model="m"} 4
# TYPE p_model_context_length gauge
p_model_context_length{model="m"} 4096
# TYPE process_open_fds gauge
process_open_fds 10
"""
TWO = ONE.replace('r_total{model="m"} 3', 'r_total{model="m"} 4\nr_total{model="n"} 1').replace(" 50", " 40")


def values(families: object) -> dict[str, float]:
    return {
        sample.name + "".join(f"|{value}" for _, value in sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(render(families).body.decode())  # type: ignore[arg-type]
        for sample in family.samples
    }


def test_a_sum_has_every_series_once() -> None:
    found = values(summed({"a": read_families(ONE), "b": read_families(TWO)}))
    assert (found["r_total|m"], found["r_total|n"]) == (7, 1)
    assert [found[f"h_bucket|{bound}"] for bound in ("1.0", "+Inf")] == [2, 4]
    assert (found["h_count"], found["h_sum"]) == (4, 10)
    assert found["p_inflight|m"] == 8


def test_facts_times_of_creation_and_what_belongs_to_a_process_are_not_added_up() -> None:
    found = values(summed({"a": read_families(ONE), "b": read_families(TWO)}))
    assert found["p_model_context_length|m"] == 4096
    assert found["r_created|m"] == 40
    assert (found["process_open_fds|a"], found["process_open_fds|b"]) == (10, 10)
    assert "process_open_fds" not in found


def test_only_counters_and_histograms_outlive_their_process() -> None:
    assert {family.name for family in cumulative(read_families(ONE))} == {"r", "h"}


def test_families_of_one_name_become_one_and_equal_series_count_once() -> None:
    found = joined(read_families(ONE), labelled({"7": read_families(ONE)}, "worker_id"), read_families(ONE))
    text = render(found).body.decode()
    assert text.count("# TYPE r_total counter") == 1
    assert text.count("r_total{") == 2
    assert 'r_total{model="m",worker_id="7"} 3.0' in text


def test_openmetrics_is_written_for_who_asks() -> None:
    body, content_type = render(read_families(ONE), "application/openmetrics-text; version=1.0.0")
    assert body.endswith(b"# EOF\n")
    assert "openmetrics" in content_type
