"""What is kept and what is passed on of the output of vLLM's processes."""

from __future__ import annotations

import subprocess
import sys
import time

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


def run_child(text: str) -> None:
    code = f"import sys; sys.stdout.write({text!r}); sys.stdout.flush(); sys.stderr.write('bye\\n')"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_cause_and_the_last_lines_of_a_failed_start_are_told_and_nothing_printed(capfd: pytest.CaptureFixture[str]) -> None:
    output = CoreOutput(verbose=False)
    with output.redirected():
        run_child(FAILURE)
    output.close()
    assert output.cause() == "there is no room"
    assert output.tail(3) == ["RuntimeError: Engine core initialization failed. See above.", "terminate called", "bye"]
    assert not any("File" in line for line in output.tail(20))
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_after_the_start_errors_and_raw_lines_are_passed_on(capfd: pytest.CaptureFixture[str]) -> None:
    output = CoreOutput(verbose=False)
    output.started()
    with output.redirected():
        run_child(FAILURE)
    print("ours")
    output.close()
    captured = capfd.readouterr()
    assert "there is no room" in captured.err
    assert "bye" in captured.err
    assert "hello" not in captured.err
    assert captured.out == "ours\n"


def test_what_was_said_during_a_good_start_is_forgotten() -> None:
    output = CoreOutput(verbose=False)
    with output.redirected():
        run_child(FAILURE)
    while output.cause() is None:
        time.sleep(0.01)
    output.started()
    output.close()
    assert output.cause() is None


def test_a_process_that_dies_without_a_word_leaves_its_frames() -> None:
    output = CoreOutput(verbose=False)
    with output.redirected():
        subprocess.run([sys.executable, "-c", "print('  Fatal', flush=True)"], check=True)
    output.close()
    output.close()
    assert output.cause() is None
    assert output.tail(5) == ["  Fatal"]


def test_a_process_that_lives_on_does_not_keep_the_output_open() -> None:
    output = CoreOutput(verbose=False)
    with output.redirected():
        process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    output.close()
    process.kill()
    process.wait()
