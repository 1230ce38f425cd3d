"""SIGHUP means two things; a process with a terminal of its own shows which."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

CODE = """
import asyncio, os, sys
from dynamo_core.runtime.signals import on_hangup

async def main():
    over = asyncio.Event()
    def tell(what):
        with open(sys.argv[1], "a") as file:
            file.write(what + "\\n")
        over.set()
    on_hangup(lambda: tell("reload"), lambda: tell("gone"))
    with open(sys.argv[1], "a") as file:
        file.write("up\\n")
    os.write(int(sys.argv[2]), b"!")
    await over.wait()

asyncio.run(main())
"""


def test_without_a_terminal_it_means_to_reload(tmp_path: Path) -> None:
    read, write = os.pipe()
    told = tmp_path / "told"
    process = subprocess.Popen(
        [sys.executable, "-c", CODE, str(told), str(write)], pass_fds=(write,), start_new_session=True, stdin=subprocess.DEVNULL
    )
    os.read(read, 1)
    process.send_signal(signal.SIGHUP)
    assert process.wait(20) == 0
    assert told.read_text() == "up\nreload\n"
    os.close(read)
    os.close(write)


def test_when_the_terminal_goes_it_means_to_end(tmp_path: Path) -> None:
    read, write = os.pipe()
    told = tmp_path / "told"
    terminal, end = os.openpty()
    # Opening a terminal makes it the session's own.
    shell = 'exec 3<>"$1"; shift; exec "$@"'
    process = subprocess.Popen(
        ["/bin/sh", "-c", shell, "sh", os.ttyname(end), sys.executable, "-c", CODE, str(told), str(write)],
        pass_fds=(write,), start_new_session=True, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    os.close(end)
    os.read(read, 1)
    os.close(terminal)
    assert process.wait(20) == 0
    assert told.read_text() == "up\ngone\n"
    os.close(read)
    os.close(write)
