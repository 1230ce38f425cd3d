"""`/metrics` with several frontends: one answer for all of them, whoever is asked."""

from __future__ import annotations

import http.client
import json
import os
import signal
import time
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

REQUESTS = "dynamo_frontend_requests_total"


def eventually(condition: Any, within: float = 20) -> None:
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def ask(server: Any, count: int) -> None:
    """Each on a connection of its own: the kernel spreads them over the frontends."""
    body = json.dumps({"model": "tiny", "prompt": "a b c", "max_tokens": 2})
    for _ in range(count):
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
        connection.request("POST", "/v1/completions", body, {"content-type": "application/json"})
        assert connection.getresponse().status == 200
        connection.close()


def scrape(server: Any) -> dict[str, float]:
    """Fails on a family or a series that is told twice."""
    text = server.get("/metrics")[1]
    names = [line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")]
    assert len(names) == len(set(names))
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            key = sample.name + json.dumps(sample.labels, sort_keys=True)
            assert key not in found
            found[key] = sample.value
    return found


def total(series: dict[str, float], name: str) -> float:
    return sum(value for key, value in series.items() if key.startswith(name + "{"))


def processes(series: dict[str, float]) -> set[str]:
    return {
        json.loads(key[key.index("{") :])["process"]
        for key in series
        if key.startswith("process_open_fds{") and 'process"' in key
    }


def gone(server: Any, name: str) -> bool:
    try:
        return name not in processes(scrape(server))
    except ConnectionError:  # this connection was still in the dead process's queue
        return False


def test_one_scrape_is_the_sum_and_a_dead_frontend_takes_its_own_series_along(serve, tiny_model):
    server = serve(
        "--engine", "mocker", "--engine-arg", "speedup_ratio=0", "--model", str(tiny_model), "--model-name", "tiny",
        "--frontends", "2", "--workers", "2",
    )  # fmt: skip
    ask(server, 60)
    for _ in range(6):  # whichever answers
        series = scrape(server)
        assert total(series, REQUESTS) == 60
        assert total(series, "dynamo_frontend_output_tokens_total") == 120
        assert total(series, "dynamo_frontend_input_sequence_tokens_count") == 60
        assert total(series, "dynamo_component_router_requests_total") == 60
        assert total(series, "dynamo_frontend_inflight_requests") == 0
        assert processes(series) >= {"frontend-0", "frontend-1"}
    assert total(series, "dynamo_frontend_model_max_num_seqs") == 256  # a fact, not a sum
    assert len({key for key in series if key.startswith("vllm:num_requests_running{")}) == 2  # one for each worker

    pids = server.pids("frontend")
    os.kill(pids["frontend-0"], signal.SIGKILL)
    eventually(lambda: gone(server, "frontend-0"))
    assert total(scrape(server), REQUESTS) == 60  # what a scrape has shown does not fall
    eventually(lambda: processes(scrape(server)) >= {"frontend-0", "frontend-1"})
    eventually(lambda: all(process["state"] == "ready" for process in server.status()["processes"]))
    eventually(lambda: all(len(json.dumps(server.get("/ready"))) and server.get("/ready")[0] == 200 for _ in range(8)))
    ask(server, 40)
    assert {total(scrape(server), REQUESTS) for _ in range(6)} == {100}
    assert server.stop() == 0


def test_the_prefix_is_dynamo_s_setting(serve, tiny_model):
    server = serve("--engine", "echo", "--model", str(tiny_model), "--model-name", "tiny", env={"DYN_METRICS_PREFIX": "acme"})
    ask(server, 3)
    series = scrape(server)
    assert total(series, "acme_requests_total") == 3
    assert not any(key.startswith("dynamo_frontend") for key in series)
    assert server.stop() == 0
