import io
import json
from types import SimpleNamespace

import pytest

from dynamo_core.supervisor import progress as module
from dynamo_core.supervisor.process import ProcessState
from dynamo_core.supervisor.progress import PlainProgress, TerminalProgress


def process(state, stage=""):
    return SimpleNamespace(name="worker-0", state=state, stage=stage)


def test_plain_lines_say_each_stage_once_and_how_long_it_took(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    out = io.BytesIO()
    progress = PlainProgress(out)
    progress.changed(process(ProcessState.STARTING))
    progress.changed(process(ProcessState.STARTING))
    progress.changed(process(ProcessState.STARTING, "starting engine echo"))
    now[0] += 9.0
    progress.tick()
    now[0] += 2.0
    progress.tick()
    now[0] += 1.5
    progress.changed(process(ProcessState.READY))
    progress.finish()
    progress.changed(process(ProcessState.WAITING))
    assert out.getvalue().decode().splitlines() == [
        "worker-0: starting",
        "worker-0: starting engine echo",
        "worker-0: still starting engine echo (11 s)",
        "worker-0: ready after 12.5 s",
    ]


@pytest.mark.parametrize("finished", [False, True])
def test_the_log_is_written_while_the_display_moves_and_after(capsys, finished):
    out = io.BytesIO()
    progress = TerminalProgress(out)
    progress.changed(process(ProcessState.STARTING, "starting engine echo"))
    if finished:
        progress.finish()
    progress.write(b"[worker-0] hello\n")
    progress.finish()
    progress.finish()
    assert b"[worker-0] hello" in out.getvalue() + capsys.readouterr().err.encode()


def test_with_json_lines_stages_are_json_as_well():
    out = io.BytesIO()
    PlainProgress(out, jsonl=True).changed(process(ProcessState.STARTING, "loading"))
    line = json.loads(out.getvalue())
    assert (line["process"], line["message"]) == ("supervisor", "worker-0: loading")
