"""Questions from a terminal, with history and several lines; or from a pipe, line by line."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

__all__ = ["Keyboard", "history_path", "keep_history"]

_QUOTES = '"""'
_HISTORY_LINES = 1000


class Keyboard:
    """``read_line`` gets a prompt and returns a line without its end; it raises ``EOFError`` at the end of input."""

    def __init__(self, read_line: Callable[[str], str] = input, *, prompt: str = "> ", more: str = "… ") -> None:
        self._read_line = read_line
        self._prompt = prompt
        self._more = more

    def read(self) -> str | None:
        """The next question; ``None`` at the end of input. Ctrl-C gives up what was typed so far."""
        while True:
            try:
                return self._whole(self._read_line(self._prompt))
            except EOFError:
                return None
            except KeyboardInterrupt:
                print(file=sys.stderr)  # noqa: T201 - the cursor stands behind what was given up

    def _whole(self, line: str) -> str:
        lines: list[str] = []
        if line.strip() == _QUOTES:
            while (line := self._read_line(self._more)).strip() != _QUOTES:
                lines.append(line)
            return "\n".join(lines)
        while line.endswith("\\"):
            lines.append(line[:-1])
            line = self._read_line(self._more)
        return "\n".join([*lines, line])


def history_path(environ: Mapping[str, str] = os.environ) -> Path:
    base = environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(base).expanduser() / "dynamo" / "chat_history"


@contextlib.contextmanager
def keep_history(path: Path):  # type: ignore[no-untyped-def]
    """Editing and history for ``input``, read from ``path`` and written there at the end, for this user's eyes only. Where that
    cannot be, there is no history."""
    try:
        import readline
    except ImportError:  # a Python without it, as on some systems
        yield
        return
    with contextlib.suppress(OSError):
        readline.read_history_file(path)
    readline.set_history_length(_HISTORY_LINES)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.touch(mode=0o600)
            readline.write_history_file(path)
