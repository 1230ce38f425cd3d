"""Where an answer is shown."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from dynamo_core.launcher.answer import Responder
from dynamo_core.launcher.conversation import Conversation
from dynamo_core.launcher.keyboard import Keyboard, history_path, keep_history

__all__ = ["converse", "note", "show"]


def show(text: str) -> None:
    """Text of an answer, at once."""
    sys.stdout.write(text)
    sys.stdout.flush()


def note(text: str) -> None:
    """What is not the answer itself: on standard error, so that the answer can be piped."""
    print(f"\x1b[2m{text}\x1b[0m" if sys.stderr.isatty() else text, file=sys.stderr, flush=True)  # noqa: T201


def converse(responder: Responder, *, system: str | None = None, options: Mapping[str, Any] | None = None) -> None:
    """Chat on the terminal, or with the lines of a pipe. Closes the responder."""
    try:
        if sys.stdin.isatty():
            with keep_history(history_path()):
                Conversation(responder, Keyboard(), show, note=note, options=options, system=system).run()
        else:
            Conversation(responder, Keyboard(_piped_line), show, note=note, options=options, system=system).run()
    finally:
        responder.close()


def _piped_line(_prompt: str) -> str:
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line.rstrip("\n")
