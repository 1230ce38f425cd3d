"""``dynamo simulate``, as its users call it."""

import json

import pytest


@pytest.fixture
def trace(tmp_path):
    path = tmp_path / "trace.jsonl"
    lines = [
        {"timestamp": i // 4 * 500, "input_length": 1000, "output_length": 5, "hash_ids": [i % 3, 100 + i]} for i in range(40)
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    return str(path)


def test_every_router_runs_at_every_load_and_the_table_says_how(dynamo, trace):
    done = dynamo(
        "simulate", trace, "--router", "kv", "--router", "round_robin", "--speedup", "1", "--speedup", "2.5", "--workers", "2"
    )
    assert done.returncode == 0, done
    head, *rows, note = done.stdout.splitlines()
    assert head.split()[:4] == ["ROUTER", "LOAD", "COMPLETED", "HIT"]
    assert [row.split()[:3] for row in rows] == [
        ["kv-router", "×1", "40/40"],
        ["kv-router", "×2.5", "40/40"],
        ["round-robin", "×1", "40/40"],
        ["round-robin", "×2.5", "40/40"],
    ]
    assert note.startswith("TTFT, TPOT and E2E: mean / p50 / p90 / p99.")
    assert done.stderr.count("40 of 40 requests in") == 4


def test_json_has_all_figures_of_all_runs(dynamo, trace, tmp_path):
    file, picture = tmp_path / "runs.json", tmp_path / "runs.svg"
    flags = ("--blocks", "64", "--spread-ms", "400", "--kv-event-delay-ms", "5", "--sla-ttft-ms", "60", "--requests", "30")
    done = dynamo("simulate", trace, "--json", str(file), "--plot", str(picture), "--workers", "2", *flags)
    assert done.returncode == 0, done
    assert "GOODPUT" in done.stdout
    (run,) = json.loads(file.read_text())
    assert (run["router"], run["speedup"], run["workers"], run["blocks"]) == ("round-robin", 1.0, 2, 64)
    assert (run["requests"], run["completed"], run["failed"]) == (30, 30, 0)
    assert 0 < run["hit_rate"] < 1
    assert all(set(run[name]) == {"mean", "p50", "p90", "p99"} for name in ("ttft_ms", "tpot_ms", "e2e_ms"))
    assert run["balance"]["requests"] == [15, 15]
    assert run["goodput"]["sla_ttft_ms"] == 60
    assert (run["spread_ms"], run["kv_event_delay_ms"]) == (400, 5)
    assert picture.read_text().startswith("<?xml")
    printed = dynamo("simulate", trace, "--json", "-", "--workers", "2", "--block-size", "64", "--blocks", "500")
    assert json.loads(printed.stdout)[0]["block_size"] == 64


def test_workers_join_and_leave_at_their_times(dynamo, trace):
    done = dynamo("simulate", trace, "--workers", "2", "--at", "4", "-2", "--at", "1.5", "+1", "--json", "-")
    (run,) = json.loads(done.stdout)
    assert (run["completed"], run["workers"], len(run["balance"]["requests"])) == (40, 2, 3)
    assert run["changes"] == [{"at_ms": 1500, "workers": 1}, {"at_ms": 4000, "workers": -2}]
    assert min(run["balance"]["requests"]) > 0


def test_the_router_of_the_environment_and_the_tables_of_the_file_count(dynamo, trace, tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text("[plugins.kv-router]\noverlap_score_weight = 0\n")
    done = dynamo("simulate", trace, "--config", str(file), "--workers", "2", DYN_ROUTER="kv")
    assert done.stdout.splitlines()[1].startswith("kv-router")
    file.write_text("[plugins.kv-router]\noverlap_weight = 0\n")
    done = dynamo("simulate", trace, "--config", str(file), "--router", "kv-router")
    assert (done.returncode, "overlap_score_weight" in done.stderr) == (2, True)


def test_mistakes_are_one_sentence(refused, trace, tmp_path):
    assert "did you mean 'kv-router'?" in refused("simulate", trace, "--router", "kv-ruter")
    assert "/nowhere cannot be read" in refused("simulate", "/nowhere")
    assert "neither PNG nor SVG" in refused("simulate", trace, "--plot", "a.gif")
    assert "its folder does not exist" in refused("simulate", trace, "--json", str(tmp_path / "no" / "a.json"))
    assert "--workers" in refused("simulate", trace, "--workers", "0")
    assert "--at 9 -3 leaves no worker" in refused("simulate", trace, "--workers", "2", "--at", "3", "+1", "--at", "9", "-3")
    assert "provides no router" in refused("simulate", trace, "--router", "mocker")
