"""What the user sees while models load: moving lines on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, BinaryIO, Protocol

from dynamo_core.supervisor.log_stream import json_line
from dynamo_core.supervisor.process import Process, ProcessState

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

__all__ = ["PlainProgress", "Progress", "TerminalProgress", "make_progress"]

_REMINDER_SECS = 10.0


class Progress(Protocol):
    """Shares standard error with the log. ``write`` may be called from any thread, the others from the supervisor's loop."""

    def changed(self, process: Process) -> None:
        """The process has another state or stage."""

    def tick(self) -> None:
        """About once a second until :meth:`finish`."""

    def finish(self) -> None:
        """All are ready, or the run is over. Calling it again changes nothing."""

    def write(self, lines: bytes) -> None:
        """Whole lines of the log."""


def make_progress(stream: BinaryIO, *, terminal: bool, jsonl: bool = False) -> Progress:
    return TerminalProgress(stream) if terminal and not jsonl else PlainProgress(stream, jsonl=jsonl)


class PlainProgress:
    def __init__(self, stream: BinaryIO, *, jsonl: bool = False) -> None:
        self._stream = stream
        self._jsonl = jsonl
        self._since: dict[str, float] = {}
        self._told: dict[str, tuple[str, float]] = {}
        self._finished = False

    def changed(self, process: Process) -> None:
        if self._finished:
            return
        now = time.monotonic()
        if process.state is ProcessState.STARTING:
            self._since.setdefault(process.name, now)
            text = process.stage or "starting"
        elif process.state is ProcessState.READY:
            self._told.pop(process.name, None)
            self._line(f"{process.name}: ready after {now - self._since.pop(process.name, now):.1f} s")
            return
        else:
            self._since.pop(process.name, None)
            self._told.pop(process.name, None)
            return
        if self._told.get(process.name, ("", 0.0))[0] != text:
            self._told[process.name] = (text, now)
            self._line(f"{process.name}: {text}")

    def tick(self) -> None:
        now = time.monotonic()
        for name, (text, told) in tuple(self._told.items()):
            if now - told >= _REMINDER_SECS and not self._finished:
                self._told[name] = (text, now)
                self._line(f"{name}: still {text} ({now - self._since[name]:.0f} s)")

    def finish(self) -> None:
        self._finished = True

    def write(self, lines: bytes) -> None:
        self._stream.write(lines)
        self._stream.flush()

    def _line(self, text: str) -> None:
        line = text.encode()
        self.write((json_line("supervisor", line) if self._jsonl else line) + b"\n")


class TerminalProgress:
    """A spinner, the stage and the elapsed time of each process; the log scrolls above."""

    def __init__(self, stream: BinaryIO) -> None:
        from rich.console import Console
        from rich.progress import Progress as RichProgress
        from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn

        self._stream = stream
        self._live: RichProgress | None = RichProgress(
            SpinnerColumn(finished_text="[green]✓"),
            TextColumn("{task.description}", markup=False),
            TextColumn("{task.fields[stage]}", style="dim", markup=False),
            TimeElapsedColumn(),
            console=Console(file=sys.stderr),
            transient=True,
        )
        self._tasks: dict[str, TaskID] = {}
        self._live.start()

    def changed(self, process: Process) -> None:
        if self._live is None:
            return
        task = self._tasks.get(process.name)
        if task is None:
            task = self._tasks[process.name] = self._live.add_task(process.name, total=1, stage="")
        ready = process.state is ProcessState.READY
        self._live.update(task, completed=int(ready), stage=process.stage or str(process.state))

    def tick(self) -> None:
        """The display's own thread keeps it moving."""

    def finish(self) -> None:
        live, self._live = self._live, None
        if live is not None:
            live.stop()

    def write(self, lines: bytes) -> None:
        live = self._live
        if live is not None:
            from rich.text import Text

            live.console.print(Text.from_ansi(lines.decode(errors="replace").rstrip("\n")), soft_wrap=True)
        else:
            self._stream.write(lines)
            self._stream.flush()
