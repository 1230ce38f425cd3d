"""The comparison with peers: what is told of answers, of gaps, of ratios, and of peers that are not there."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import threading
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.peers.cases import CASES, Closed
from benchmarks.peers.connection import Connection
from benchmarks.peers.environment import prepare
from benchmarks.peers.held import Gaps
from benchmarks.peers.limits import TooLong, within
from benchmarks.peers.load import ClosedLoop
from benchmarks.peers.page import BEGIN, PAGE, RESULTS, filled
from benchmarks.peers.processes import ServerProcess, cpu_seconds, resident_mib, tree
from benchmarks.peers.prompts import Conversations, FreshPrompts, RepeatedPrompts
from benchmarks.peers.report import Figures, report, worse
from benchmarks.peers.results import Machine, Measurement, Results, RunInfo
from benchmarks.peers.run import Run
from benchmarks.peers.servers import SERVERS, Running, Setting

ROOT = Path(__file__).parents[2]


def event(text: str) -> bytes:
    body = b'data: {"choices":[{"delta":{"content":' + json.dumps(text).encode() + b"}}]}\n\n"
    return f"{len(body):x}\r\n".encode() + body + b"\r\n"


STREAM_HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
STREAM = STREAM_HEAD + event("") + event("one") + event("two") + b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"
UNARY = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello"


@pytest.fixture
def listener():
    with socket.create_server(("127.0.0.1", 0)) as made:
        yield made


@pytest.fixture
def connection(listener):
    made = Connection(listener.getsockname()[1], keep=True)
    yield made
    made.close()


@pytest.mark.parametrize("answer", [STREAM, UNARY])
@pytest.mark.parametrize("size", [1, 2, 7, 64, 10_000])
def test_the_end_of_an_answer_is_found_however_it_is_cut(connection, answer, size):
    connection.ask(b"GET", 1.0)
    pieces = [answer[at : at + size] for at in range(0, len(answer), size)]
    ended = [connection.take(piece) for piece in pieces]
    assert ended == [False] * (len(pieces) - 1) + [True]
    assert connection.ok
    assert connection.body().startswith("data:" if answer is STREAM else "hello")


def test_events_without_text_do_not_count_as_tokens(connection):
    connection.ask(b"GET", 1.0)
    assert connection.take(STREAM)
    assert (connection.texts, connection.reads) == (2, 1)


def test_a_stream_that_is_complete_counts_with_its_first_text(listener):
    def answer() -> None:
        link, _ = listener.accept()
        with link:
            link.recv(1 << 16)
            link.sendall(STREAM)

    server = threading.Thread(target=answer)
    server.start()
    made = ClosedLoop(listener.getsockname()[1], RepeatedPrompts(20, (2, 2), stream=True), 1).run(0.0)
    server.join()
    assert (made.completed, made.failed, made.reads) == (1, 0, 1)
    assert 0 < made.first[0] <= made.whole[0] < 10


def test_an_answer_that_is_no_success_counts_as_failed_and_says_why(listener):
    def answer() -> None:
        link, _ = listener.accept()
        with link:
            link.recv(1 << 16)
            link.sendall(b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 4\r\n\r\nbusy")

    server = threading.Thread(target=answer)
    server.start()
    made = ClosedLoop(listener.getsockname()[1], RepeatedPrompts(20, (1, 1), stream=False), 1).run(0.0)
    server.join()
    assert (made.completed, made.failed, made.why_failed) == (0, 1, "busy")


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(0, 3000), min_size=1, max_size=60))
def test_gaps_have_the_percentiles_of_a_plain_list(tenths):
    gaps = Gaps()
    for value in tenths:
        gaps.add(value / 10_000 + 1e-9)
    ordered = sorted(tenths)
    (median,) = gaps.percentiles_ms(0.5)
    assert median == ordered[(len(ordered) + 1) // 2 - 1] / 10
    away = sorted(abs(value - round(median * 10)) for value in tenths)
    assert gaps.jitter_ms(0.5, 1.0) == [away[(len(away) + 1) // 2 - 1] / 10, away[-1] / 10]


def test_prompts_have_the_length_asked_for_and_fresh_ones_are_all_different():
    for kind in (FreshPrompts, RepeatedPrompts):
        source = kind(500, (3, 3), stream=True)
        bodies = [json.loads(source.request(0).partition(b"\r\n\r\n")[2]) for _ in range(64)]
        assert {len(body["messages"][0]["content"].split()) for body in bodies} == {500}
        assert {body["max_tokens"] for body in bodies} == {3}
    fresh = FreshPrompts(500, (1, 1), stream=False)
    assert len({fresh.request(0)[:400] for _ in range(64)}) > 60


def test_a_conversation_goes_on_with_the_answer_and_begins_anew_after_its_turns():
    talk = Conversations(2, 8)
    talk.request(0)
    talk.answered(0, 'data: {"choices":[{"delta":{"content":"well"}}]}\n\ndata: [DONE]\n\n')
    second = json.loads(talk.request(0).partition(b"\r\n\r\n")[2])["messages"]
    assert [message["role"] for message in second] == ["system", "user", "assistant", "user"]
    assert second[2]["content"] == "well"
    talk.answered(0, "data: [DONE]\n\n")
    assert len(json.loads(talk.request(0).partition(b"\r\n\r\n")[2])["messages"]) == 2


def test_the_cost_of_a_process_counts_its_children(tmp_path):
    burn = "import time\nuntil = time.process_time() + 0.3\nwhile time.process_time() < until: pass\n"
    start = f"subprocess.Popen([sys.executable, '-c', {burn + 'input()'!r}], stdin=subprocess.PIPE)"
    code = f"import subprocess, sys\nchild = {start}\nchild.wait()"
    process = ServerProcess([sys.executable, "-c", code], tmp_path / "log", {})
    try:
        while cpu_seconds([process.pid]) < 0.3:
            assert not process.ended, process.why()
        assert len(tree(process.pid)) == 2
        assert resident_mib([process.pid]) > resident_mib(tree(process.pid)[1:]) > 0
    finally:
        process.stop()
    assert process.ended


def made(case: str, server: str, values: dict[str, float], number: int = 0) -> Measurement:
    return Measurement(case, server, number, {"completed": 10, "failed": 0, **values})


def results(*measurements: Measurement, **more: object) -> Results:
    run = RunInfo(command="python -m benchmarks peers", commit="abc123", date="today", load=0.1, rounds=2, seconds=1.0, model="m")
    return Results(
        runs=[run], machine=Machine("Linux", "CPU", 2, 8.0), versions={"smg": "1"}, measurements=[*measurements], **more
    )


def test_ratios_are_of_medians_and_what_is_worse_than_a_peer_is_said():
    whole = results(
        *(made("stream-32", "dynamo-core", {"cpu_us.frontend": v, "per_s": 100.0}, n) for n, v in enumerate((10.0, 99.0, 11.0))),
        *(made("stream-32", "smg", {"cpu_us.frontend": v, "per_s": 90.0}, n) for n, v in enumerate((22.0, 20.0, 99.0))),
        *(made("stream-32", "vllm-router", {"cpu_us.frontend": 5.5, "per_s": 200.0}, n) for n in range(3)),
    )
    figures = Figures(whole.measurements)
    column = CASES["stream-32"].columns[0]
    assert figures.ratio("stream-32", "smg", column) == 0.5
    found = [(server, key.key, round(ratio, 2)) for _, key, server, ratio in worse(figures)]
    assert found == [("vllm-router", "cpu_us.frontend", 2.0), ("vllm-router", "per_s", 0.5)]
    text = report(whole)
    assert "Nowhere in this run, of those that do the same work." in text
    assert text.index("A proxy passes bytes on") < text.index("is 2.00 × vllm-router's")
    assert "| 11.0 (10.0–99.0) | 100 |" in text
    assert "is 2.00 × vllm-router's" in text


def test_results_come_back_as_they_were_written_and_later_files_replace_cases(tmp_path):
    first = results(made("stream-32", "smg", {"per_s": 1.0}), made("ttft-1", "smg", {"per_s": 2.0}))
    second = results(made("ttft-1", "smg", {"per_s": 3.0}), left_out={"dynamo": "it is not there"})
    for number, whole in enumerate((first, second)):
        whole.write(tmp_path / f"{number}.json")
        assert Results.read(tmp_path / f"{number}.json") == whole
    joined = Results.read(tmp_path / "0.json", tmp_path / "1.json")
    assert [one.values["per_s"] for one in joined.measurements] == [1.0, 3.0]
    assert len(joined.runs) == 2
    assert "left out: it is not there" in report(joined)
    missing = results(made("ttft-1", "smg", {"per_s": 1.0}), left_out={"smg/stream-32": "cut"})
    missing.write(tmp_path / "2.json")
    assert "smg/stream-32" in Results.read(tmp_path / "1.json", tmp_path / "2.json").left_out
    assert "smg/stream-32" not in Results.read(tmp_path / "2.json", tmp_path / "0.json").left_out  # it was measured later


def test_a_peer_that_cannot_start_is_named_with_the_reason_and_left_out(tmp_path, capsys):
    run = Run(model=tmp_path, small_model=tmp_path, peers=tmp_path / "nothing", rounds=2, seconds=0.1, servers=["dynamo"])
    run.run([CASES["ttft-1"], CASES["start-small"]])
    assert run.measurements == []
    assert list(run.left_out) == ["dynamo"]
    assert "dynamo cannot be started" in capsys.readouterr().out


class Stand(NamedTuple):
    """A server that is there already, as one to be measured."""

    name: str
    port: int
    backends: str = ""

    def start(self, setting: Setting) -> contextlib.AbstractContextManager[Running]:
        return contextlib.nullcontext(Running(self.name, self.port, {"frontend": (os.getpid(),)}, 0.0))


def test_a_server_that_hangs_is_cut_off_and_named_and_the_others_are_measured(listener, monkeypatch, tmp_path):
    """One accepts and says nothing, the other answers."""
    with socket.create_server(("127.0.0.1", 0)) as good:
        stop = threading.Event()

        def serve() -> None:
            good.settimeout(0.05)
            while not stop.is_set():
                with contextlib.suppress(OSError):
                    link, _ = good.accept()
                    with link:
                        while link.recv(1 << 16):
                            link.sendall(UNARY)

        server = threading.Thread(target=serve)
        server.start()
        try:
            for name, port in (("dynamo", listener.getsockname()[1]), ("dynamo-core", good.getsockname()[1])):
                monkeypatch.setitem(SERVERS, name, Stand(name, port))
            monkeypatch.setattr(Closed, "limit", lambda _self, _seconds: 4.0)
            load = Closed(connections=1, source=lambda: RepeatedPrompts(20, (1, 1), stream=False))
            case = msgspec.structs.replace(CASES["unary-20-repeated"], load=load)
            run = Run(
                model=tmp_path, small_model=tmp_path, peers=tmp_path, rounds=2, seconds=0.05, servers=["dynamo", "dynamo-core"]
            )
            run.run([case])
        finally:
            stop.set()
            server.join()
    assert [(one.server, one.round) for one in run.measurements] == [("dynamo-core", 0), ("dynamo-core", 1)]
    assert run.left_out == {"dynamo/unary-20-repeated": "dynamo in unary-20-repeated: cut after 4 s"}


def test_a_case_that_needs_more_open_files_than_allowed_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr("benchmarks.peers.run.allow_files", lambda _count: 15_000)
    for name in ("dynamo-core", "smg"):
        monkeypatch.setitem(SERVERS, name, Stand(name, 1, "dynamo-core" if name == "smg" else ""))
    run = Run(model=tmp_path, small_model=tmp_path, peers=tmp_path, rounds=1, seconds=0.1, servers=["smg"])
    run.run([CASES["idle-10000"]])
    (why,) = run.left_out.values()
    assert "20,500 open files" in why


def test_cases_share_servers_only_with_those_that_need_the_same(tmp_path):
    run = Run(model=tmp_path, small_model=tmp_path, peers=tmp_path, rounds=1, seconds=0.1, servers=list(SERVERS))
    groups = {case.name: names for names, group in run.groups(list(CASES.values())) for case in group}
    assert groups.keys() == CASES.keys()
    assert "smg-dynamo" in groups["stream-32"]
    assert "dynamo-fastokens" not in groups["stream-32"]
    assert "dynamo-fastokens" in groups["unary-20-fresh"]
    assert not {"smg-dynamo", "vllm-router-dynamo"} & {
        name for case, names in groups.items() if case[:6] != "stream" for name in names
    }


def test_nothing_waits_longer_than_it_may():
    with pytest.raises(TooLong, match="cut after 0 s"), within(0.05), socket.create_server(("127.0.0.1", 0)) as nobody:
        nobody.accept()
    with within(30):
        assert signal.getitimer(signal.ITIMER_REAL)[0] > 20
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0


def test_a_requirement_that_cannot_be_installed_is_named_and_costs_only_itself(tmp_path):
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text('#!/bin/sh\ncase "$*" in *" -r "*|*smg*) echo "no smg here" >&2; exit 1;; esac\n')
    python.chmod(0o755)
    assert prepare(tmp_path) == {}  # somebody else's
    (tmp_path / "peers-installed").write_text("incomplete\n")
    assert prepare(tmp_path) == {"smg==1.13.0": "no smg here"}
    python.write_text("#!/bin/sh\n")
    assert prepare(tmp_path) == {}
    assert "vllm-router" in (tmp_path / "peers-installed").read_text()


def test_one_command_measures_this_server_and_keeps_the_raw_numbers(tmp_path, tiny_model):
    command = [
        sys.executable, "-m", "benchmarks", "peers", "--peer", "dynamo-core", "--case", "paced-32",
        "--rounds", "1", "--seconds", "0.5", "--model", str(tiny_model), "--peers-venv", str(tmp_path / "none"),
        "--results", str(tmp_path),
    ]  # fmt: skip
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=110, check=False, env={**os.environ})
    assert run.returncode == 0, run.stdout + run.stderr
    (file,) = tmp_path.glob("*.json")
    assert str(file) in run.stdout
    figures = Figures(Results.read(file).measurements)
    assert figures.total("paced-32", "dynamo-core", "failed") == 0
    assert figures.total("paced-32", "dynamo-core", "completed") == 32
    assert statistics.median(figures.values("paced-32", "dynamo-core", "gap_p50_ms")) == pytest.approx(33, abs=15)
    assert (figures.median("paced-32", "dynamo-core", "cpu_us.frontend") or 0) > 0


def test_the_page_says_what_the_kept_results_say():
    page = PAGE.read_text()
    assert BEGIN in page
    assert filled(page, Results.read(RESULTS)) == page
    for line in page.splitlines():
        if line.startswith("!["):
            assert (PAGE.parent / line.rpartition("(")[2].rstrip(")")).is_file()
