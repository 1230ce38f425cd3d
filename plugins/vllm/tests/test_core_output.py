"""What is kept and what is passed on of the output of vLLM's processes."""

from __future__ import annotations

import asyncio
import subprocess
import sys
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


def run_child(text: str) -> None:
    code = f"import sys; sys.stdout.write({text!r}); sys.stdout.flush(); sys.stderr.write('bye\\n')"
    subprocess.run([sys.executable, "-c", code], check=True)


async def test_the_cause_and_the_last_lines_of_a_failed_start_are_told_and_nothing_printed(
    capfd: pytest.CaptureFixture[str],
) -> None:
    output = CoreOutput(asyncio.get_running_loop(), verbose=False)
    with output.redirected():
        await asyncio.to_thread(run_child, FAILURE)
    assert output.cause() == "there is no room"
    assert output.tail(3) == ["RuntimeError: Engine core initialization failed. See above.", "terminate called", "bye"]
    assert not any("File" in line for line in output.tail(20))
    output.close()
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")


async def test_after_the_start_errors_and_raw_lines_are_passed_on(capfd: pytest.CaptureFixture[str]) -> None:
    output = CoreOutput(asyncio.get_running_loop(), verbose=False)
    with output.redirected():
        await asyncio.to_thread(run_child, "before\n")
        output.started()
        await asyncio.to_thread(run_child, FAILURE)
    print("ours")
    assert "before" not in output.tail(50)
    output.close()
    captured = capfd.readouterr()
    assert "there is no room" in captured.err
    assert "bye" in captured.err
    assert "hello" not in captured.err
    assert captured.out == "ours\n"


async def test_a_process_that_dies_without_a_word_leaves_its_frames(tmp_path: Path) -> None:
    output = CoreOutput(asyncio.get_running_loop(), verbose=False)
    with output.redirected():
        await asyncio.to_thread(subprocess.run, [sys.executable, "-c", "print('  Fatal', flush=True)"], check=True)
    assert output.cause() is None
    assert output.tail(5) == ["  Fatal"]
    output.close()
    output.close()
