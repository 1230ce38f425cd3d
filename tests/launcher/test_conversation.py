"""The chat loop with a responder that is played, and a keyboard that types a script."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from dynamo_core.errors import ServiceUnavailable
from dynamo_core.launcher.answer import Answer, Message, OnText
from dynamo_core.launcher.conversation import Conversation
from dynamo_core.launcher.keyboard import Keyboard


class Parrot:
    """Repeats the last message; fails or is broken off when that says so."""

    def __init__(self) -> None:
        self.model = "parrot"
        self.asked: list[tuple[list[Message], dict[str, Any]]] = []

    def models(self) -> Sequence[str]:
        return ["parrot", "crow"]

    def ask(self, messages: Sequence[Message], options: Mapping[str, Any], on_text: OnText) -> Answer:
        self.asked.append((list(messages), dict(options)))
        text = messages[-1]["content"]
        if text == "fail":
            raise ServiceUnavailable("The parrot is asleep.")
        on_text(text[:2])
        if text == "break":
            raise KeyboardInterrupt
        on_text(text[2:])
        return Answer(text=text, output_tokens=11, ttft=0.5, duration=1.5, finish_reason="stop")

    def close(self) -> None:
        pass


class Chat:
    def __init__(self, *lines: str, system: str | None = None) -> None:
        self.parrot = Parrot()
        self.shown = ""
        self.notes: list[str] = []
        typed: Iterator[str] = iter(lines)

        def read(prompt: str) -> str:
            try:
                line = next(typed)
            except StopIteration:
                raise EOFError from None
            if line == "^C":
                raise KeyboardInterrupt
            return line

        def show(text: str) -> None:
            self.shown += text

        Conversation(self.parrot, Keyboard(read), show, note=self.notes.append, system=system).run()

    @property
    def questions(self) -> list[list[str]]:
        return [[f"{message['role'][0]}:{message['content']}" for message in messages] for messages, _ in self.parrot.asked]


def test_every_question_carries_the_conversation_before_it() -> None:
    chat = Chat("hello", "again", system="Be brief.")
    assert chat.questions == [["s:Be brief.", "u:hello"], ["s:Be brief.", "u:hello", "a:hello", "u:again"]]
    assert chat.shown == "hello\nagain\n"


def test_tokens_a_second_are_told_after_each_answer() -> None:
    assert Chat("hello").notes[1] == "11 tokens, 10.0 tokens/s, first after 0.50 s"


def test_lines_are_joined_by_backslashes_and_quotation_marks() -> None:
    chat = Chat("one\\", "two", '"""', "/three", "", "four", '"""')
    assert [question[-1] for question in chat.questions] == ["u:one\ntwo", "u:/three\n\nfour"]


def test_a_question_without_an_answer_is_taken_back() -> None:
    chat = Chat("fail", "hello")
    assert "The parrot is asleep." in chat.notes
    assert chat.questions[-1] == ["u:hello"]


def test_ctrl_c_breaks_an_answer_off_and_keeps_what_came() -> None:
    chat = Chat("break", "hello")
    assert "broken off" in chat.notes
    assert chat.questions[-1] == ["u:break", "a:br", "u:hello"]


def test_ctrl_c_at_the_prompt_gives_up_the_line_only() -> None:
    assert Chat("half\\", "^C", "hello").questions == [["u:hello"]]


def test_clear_system_undo_and_retry_change_what_is_sent() -> None:
    chat = Chat("a", "/clear", "b", "/retry", "c", "/undo", "/system Be kind.", "d", "/system", "e")
    assert chat.questions == [
        ["u:a"], ["u:b"], ["u:b"], ["u:b", "a:b", "u:c"], ["s:Be kind.", "u:d"], ["u:e"],
    ]  # fmt: skip


def test_set_changes_the_fields_of_requests() -> None:
    chat = Chat("/set temperature=0.5", "/set stop=x", "a", "/set", "/set stop=", "b")
    assert [options for _, options in chat.parrot.asked] == [{"temperature": 0.5, "stop": "x"}, {"temperature": 0.5}]
    assert "temperature=0.5\nstop=x" in chat.notes


def test_model_lists_and_changes() -> None:
    chat = Chat("/model", "/model cro", "/model crow")
    assert chat.notes[1] == "* parrot\n  crow"
    assert chat.notes[2].startswith("no model 'cro': did you mean 'crow'")
    assert chat.parrot.model == "crow"


def test_save_writes_the_conversation(tmp_path: Path) -> None:
    chat = Chat("hello", f"/save {tmp_path}/chat.json", f"/save {tmp_path}/no/chat.json", "/save", system="S")
    saved = json.loads((tmp_path / "chat.json").read_text())
    assert [message["content"] for message in saved["messages"]] == ["S", "hello", "hello"]
    assert "cannot be written (no such file or directory)" in chat.notes[-2]


@pytest.mark.parametrize("word", ["/quit", "/exit"])
def test_quit_ends(word: str) -> None:
    assert Chat(word, "hello").questions == []


def test_an_unknown_command_names_the_nearest_and_help_lists_all() -> None:
    chat = Chat("/sav", "/help")
    assert chat.notes[1].startswith("/sav is no command: did you mean 'save'")
    assert all(f"/{name}" in chat.notes[2] for name in ("clear", "system", "model", "set", "retry", "undo", "save", "quit"))
