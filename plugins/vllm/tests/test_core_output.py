"""What is kept and what is passed on of the output of vLLM's processes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dynamo_vllm.core_output import CoreOutput

FAILURE = """\
(EngineCore pid=7) INFO 11-22 17:09:30 [core.py:1] hello
(EngineCore pid=7) ERROR 11-22 17:09:35 [core.py:1510] Traceback (most recent call last):
(EngineCore pid=7) ERROR 11-22 17:09:35 [core.py:1510]   File "core.py", line 1, in run
(EngineCore pid=7) ERROR 11-22 17:09:35 [core.py:1510] ValueError: there is no room
(EngineCore pid=7) ERROR 11-22 17:09:36 [core.py:1510] RuntimeError: Engine core initialization failed. See above.
terminate called
"""


@pytest.fixture
def output(tmp_path: Path) -> Iterator[CoreOutput]:
    output = CoreOutput(tmp_path / "pipe", verbose=False)
    yield output
    output.close()


SIGILL_HINT = "; with --engine-arg dtype=float32 vLLM uses instructions that more processors have"


def say(output: CoreOutput, text: str) -> None:
    with output.path.open("w") as pipe:
        pipe.write(text)


@pytest.mark.parametrize(
    ("before", "exit_code", "cause"),
    [
        ("RuntimeError: NCCL is lost\n", -6, "its process VllmWorker-1 was ended by SIGABRT, after: RuntimeError: NCCL is lost"),
        ("", -4, f"its process VllmWorker-1 was ended by SIGILL{SIGILL_HINT}"),
        ("", -99, "its process VllmWorker-1 was ended by signal 99"),
        ("", None, "its process VllmWorker-1 has ended, and vLLM did not see how"),
        ("ValueError: there is no room\n", None, "there is no room"),
    ],
)
def test_a_death_is_told_with_the_error_before_it(output: CoreOutput, before: str, exit_code: int | None, cause: str) -> None:
    death = f"Worker proc VllmWorker-1 died unexpectedly (exit code: {exit_code}), shutting down executor.\n"
    say(output, f"{before}{death}asyncio.exceptions.CancelledError: cancelled\n")
    output.close()
    assert output.cause() == cause


def test_the_cause_and_the_last_lines_of_a_failed_start_are_told_and_nothing_printed(
    output: CoreOutput, capfd: pytest.CaptureFixture[str]
) -> None:
    say(output, FAILURE)
    output.close()
    assert output.cause() == "there is no room"
    assert output.tail(2) == ["RuntimeError: Engine core initialization failed. See above.", "terminate called"]
    assert not any("File" in line for line in output.tail(20))
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_after_the_start_errors_and_raw_lines_are_passed_on(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    output = CoreOutput(tmp_path / "pipe", verbose=False)
    output.started()
    say(output, FAILURE)
    output.close()
    captured = capfd.readouterr()
    assert "there is no room" in captured.err
    assert "terminate called" in captured.err
    assert "hello" not in captured.err
    assert captured.out == ""


def test_what_was_said_during_a_good_start_is_forgotten(output: CoreOutput) -> None:
    say(output, FAILURE)
    while output.cause() is None:
        time.sleep(0.01)
    output.started()
    assert output.cause() is None


def test_a_process_that_dies_without_a_word_leaves_its_frames(output: CoreOutput) -> None:
    say(output, "  Fatal\n")
    output.close()
    output.close()
    assert output.cause() is None
    assert output.tail(5) == ["  Fatal"]


def test_a_process_that_lives_on_does_not_keep_the_output_open(output: CoreOutput) -> None:
    with output.path.open("w"):
        output.close()
    assert not output.path.exists()
