"""The interactive chat of ``dynamo chat`` and ``dynamo run in=text``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from dynamo_core.errors import DynamoError
from dynamo_core.launcher.answer import Answer, Message, Responder
from dynamo_core.launcher.keyboard import Keyboard
from dynamo_core.plugins.names import suggestion

__all__ = ["Conversation"]

_HELP = """\
  /help            this list
  /clear           forget the conversation (the system message stays)
  /system [TEXT]   set the system message and begin anew; without TEXT, remove it
  /model [NAME]    talk to another model; without NAME, list them
  /set KEY=VALUE   a field of the requests, such as temperature=0.2; /set lists them, /set KEY= removes one
  /retry           ask for the last answer again
  /undo            forget the last question and its answer
  /save FILE       write the conversation as JSON
  /quit            end; so does Ctrl-D
A line that ends with a backslash goes on in the next one, as does everything between two lines of three quotation marks.
Ctrl-C breaks an answer off."""


class Conversation:
    """Reads questions, shows answers as they come. One :meth:`run` for each object."""

    def __init__(
        self,
        responder: Responder,
        keyboard: Keyboard,
        show: Callable[[str], None],
        *,
        note: Callable[[str], None],
        options: Mapping[str, Any] | None = None,
        system: str | None = None,
    ) -> None:
        """``show`` gets the text of answers, ``note`` what is said about them, line by line."""
        self._responder = responder
        self._keyboard = keyboard
        self._show = show
        self._note = note
        self._options = dict(options or {})
        self._system = system
        self._messages: list[Message] = []
        self._commands: dict[str, Callable[[str], bool]] = {
            "help": self._help, "clear": self._clear, "system": self._set_system, "model": self._model, "set": self._set,
            "retry": self._retry, "undo": self._undo, "save": self._save, "quit": _quit, "exit": _quit,
        }  # fmt: skip

    def run(self) -> None:
        """Until ``/quit`` or the end of input."""
        self._note(f"{self._responder.model}: /help lists the commands, Ctrl-D ends")
        while (text := self._keyboard.read()) is not None:
            if not text.strip():
                continue
            if text.startswith("/") and "\n" not in text:
                if not self._command(text):
                    return
            else:
                self._messages.append({"role": "user", "content": text})
                self._answer()

    def _command(self, text: str) -> bool:
        """False when it ends the conversation."""
        word, _, rest = text[1:].partition(" ")
        command = self._commands.get(word)
        if command is None:
            self._note(f"/{word} is no command: {suggestion(word, sorted(self._commands), what='commands')}")
            return True
        return command(rest.strip())

    def _answer(self) -> None:
        """To the last message; without an answer, the question is taken back."""
        system: list[Message] = [{"role": "system", "content": self._system}] if self._system else []
        texts: list[str] = []

        def on_text(text: str) -> None:
            texts.append(text)
            self._show(text)

        try:
            answer = self._responder.ask([*system, *self._messages], self._options, on_text)
        except KeyboardInterrupt:
            self._show("\n")
            self._note("broken off")
            self._keep("".join(texts))
        except DynamoError as error:
            self._show("\n" if texts else "")
            self._note(error.message)
            self._keep("".join(texts))
        else:
            self._show("\n")
            self._note(_account(answer))
            self._keep(answer.text)

    def _keep(self, text: str) -> None:
        if text:
            self._messages.append({"role": "assistant", "content": text})
        else:
            self._messages.pop()

    # --- commands ------------------------------------------------------------------------------------------------------------

    def _help(self, _rest: str) -> bool:
        self._note(_HELP)
        return True

    def _clear(self, _rest: str) -> bool:
        self._messages.clear()
        self._note("forgotten")
        return True

    def _set_system(self, rest: str) -> bool:
        self._system = rest or None
        self._messages.clear()
        self._note("a system message, and a conversation from its beginning" if rest else "no system message")
        return True

    def _model(self, rest: str) -> bool:
        try:
            known = self._responder.models()
        except DynamoError as error:
            self._note(error.message)
            return True
        if not rest:
            self._note("\n".join(f"{'*' if name == self._responder.model else ' '} {name}" for name in known))
        elif rest in known:
            self._responder.model = rest
            self._note(f"talking to {rest}")
        else:
            self._note(f"no model {rest!r}: {suggestion(rest, known, what='models')}")
        return True

    def _set(self, rest: str) -> bool:
        key, equals, value = rest.partition("=")
        if not equals:
            self._note("\n".join(f"{name}={shown}" for name, shown in self._options.items()) or "nothing is set")
        elif not value:
            self._options.pop(key, None)
        else:
            try:
                self._options[key] = msgspec.json.decode(value)
            except msgspec.DecodeError:
                self._options[key] = value
        return True

    def _retry(self, _rest: str) -> bool:
        if self._messages and self._messages[-1]["role"] == "assistant":
            self._messages.pop()
        if self._messages:
            self._answer()
        else:
            self._note("nothing was asked yet")
        return True

    def _undo(self, _rest: str) -> bool:
        del self._messages[-2:]
        return True

    def _save(self, rest: str) -> bool:
        if not rest:
            self._note("write /save FILE")
            return True
        system: list[Message] = [{"role": "system", "content": self._system}] if self._system else []
        body = {"model": self._responder.model, "messages": [*system, *self._messages]}
        try:
            Path(rest).expanduser().write_bytes(msgspec.json.format(msgspec.json.encode(body)) + b"\n")
        except OSError as error:
            self._note(f"{rest} cannot be written ({(error.strerror or str(error)).lower()})")
        else:
            self._note(f"saved {len(self._messages)} messages in {rest}")
        return True


def _quit(_rest: str) -> bool:
    return False


def _account(answer: Answer) -> str:
    first = "" if answer.ttft is None else f", first after {answer.ttft:.2f} s"
    end = "" if answer.finish_reason in (None, "stop") else f", ended by {answer.finish_reason}"
    return f"{answer.output_tokens} tokens, {answer.tokens_per_second:.1f} tokens/s{first}{end}"
