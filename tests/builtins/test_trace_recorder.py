from __future__ import annotations

import asyncio
import json
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dynamo_core.builtins import trace_recorder
from dynamo_core.builtins.trace_recorder import TraceRecorder, TraceRecorderConfig
from dynamo_core.contracts import PreparedRequest, RequestSummary
from dynamo_core.errors import StartupError
from dynamo_core.plugins import activate
from dynamo_core.simulator import read_trace


class Recording:
    """A recorder, its clock and its file."""

    def __init__(self, file: Path, block_size: int = 4) -> None:
        self.now = 100.0
        self.file = file
        self.recorder = TraceRecorder(lambda: self.now)
        self.recorder.dynamo_startup("frontend", TraceRecorderConfig(file=str(file), block_size=block_size))

    def arrive(self, id: str, tokens: Any, salt: str | None = None) -> None:
        body = SimpleNamespace(cache_salt=salt)
        request = PreparedRequest(
            id=id, model="m", endpoint="chat", principal=None, headers={}, body=body, token_ids=list(tokens), max_tokens=9
        )
        self.recorder.dynamo_prepare(request)

    def finish(self, id: str, output: int, outcome: Any = "completed") -> None:
        summary = RequestSummary(
            id=id, model="m", endpoint="chat", principal=None, status=200, outcome=outcome, output_tokens=output
        )
        self.recorder.dynamo_request_finished(summary)

    def lines(self) -> list[dict[str, Any]]:
        self.recorder.dynamo_shutdown()
        return [json.loads(line) for line in self.file.read_text().splitlines()]


@pytest.fixture
def recording(tmp_path: Path) -> Recording:
    return Recording(tmp_path / "trace.jsonl")


def test_lines_come_in_the_order_of_arrival_whoever_ends_first(recording: Recording) -> None:
    recording.arrive("a", range(10))
    recording.now += 1.5
    recording.arrive("b", range(8))
    recording.finish("b", 3)
    recording.finish("unknown", 3)
    recording.finish("a", 7, "cancelled")
    one, two = recording.lines()
    assert (one["timestamp"], one["input_length"], one["output_length"], one["block_size"]) == (0, 10, 7, 4)
    assert (two["timestamp"], two["input_length"], two["output_length"]) == (1500, 8, 3)
    assert one["hash_ids"][:2] == two["hash_ids"]
    assert (len(one["hash_ids"]), len(set(one["hash_ids"]))) == (3, 3)


def test_a_recording_reads_back_as_a_trace(recording: Recording) -> None:
    for number in range(5):
        recording.arrive(str(number), [*range(9), 100 + number])
        recording.finish(str(number), number)
        recording.now += 1
    assert len(recording.lines()) == 5
    trace = read_trace(str(recording.file))
    assert trace.block_size == 4
    assert [request.output_length for request in trace.requests] == [1, 1, 2, 3, 4]
    assert {request.blocks[:2] for request in trace.requests} == {(0, 1)}
    assert len({request.blocks[2] for request in trace.requests}) == 5
    with pytest.raises(StartupError, match="line 1: block_size is 4, not 8 as before"):
        read_trace(str(recording.file), block_size=8)


def test_what_was_refused_and_what_never_ended_is_left_out(recording: Recording) -> None:
    recording.arrive("refused", range(3))
    recording.arrive("good", range(3))
    recording.arrive("open", range(3))
    recording.finish("refused", 0, "rejected")
    recording.finish("good", 2)
    assert [line["output_length"] for line in recording.lines()] == [2]


def test_several_prompts_of_one_request_share_its_output(recording: Recording) -> None:
    recording.arrive("a", range(3))
    recording.arrive("a", range(5))
    recording.finish("a", 8)
    assert [(line["input_length"], line["output_length"]) for line in recording.lines()] == [(3, 4), (5, 4)]


def test_nothing_in_the_file_names_a_prompt_and_tenants_share_nothing(tmp_path: Path) -> None:
    files = [Recording(tmp_path / f"{name}.jsonl") for name in "ab"]
    for file in files:
        for who, salt in (("plain", None), ("tenant", "t")):
            file.arrive(who, range(6), salt)
            file.finish(who, 1)
    names = [name for file in files for line in file.lines() for name in line["hash_ids"][:1]]
    assert len(set(names)) == 4
    assert all(0 <= name < 2**63 for name in names)


def test_an_existing_file_is_never_written_over(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text("mine")
    for number in (2, 3):
        made = Recording(path)
        made.arrive("a", range(3))
        made.finish("a", 1)
        made.recorder.dynamo_shutdown()
        assert len((tmp_path / f"trace-{number}.jsonl").read_text().splitlines()) == 1
    assert path.read_text() == "mine"
    with pytest.raises(StartupError, match="cannot be written: No such file or directory"):
        Recording(tmp_path / "no" / "trace.jsonl")


def test_a_request_without_end_does_not_hold_up_the_others_for_ever(
    recording: Recording, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(trace_recorder, "_MOST_OPEN", 3)
    with caplog.at_level(logging.WARNING):
        for number in range(6):
            recording.arrive(str(number), range(3))
            if number:
                recording.finish(str(number), number)
    assert "request 0 runs so long" in caplog.text
    assert [line["output_length"] for line in recording.lines()] == [1, 2, 3, 4, 5]


def test_it_is_a_plugin_that_records_in_frontends_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    compiled = activate(["trace-recorder"])
    asyncio.run(compiled.startup("worker"))
    asyncio.run(compiled.shutdown("worker"))
    assert list(tmp_path.iterdir()) == []
    asyncio.run(compiled.startup("frontend"))
    asyncio.run(compiled.shutdown("frontend"))
    assert [path.name for path in tmp_path.iterdir()] == ["trace.jsonl"]
