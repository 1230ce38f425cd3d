from __future__ import annotations

import pytest

from dynamo_core.errors import StartupError
from dynamo_core.launcher.words import parse_words


def parsed(*words: str, terminal: bool = True) -> tuple[str, str, str, str | None]:
    found = parse_words(words, terminal=terminal)
    return found.input, found.target, found.output, found.model


def test_words_come_in_any_order_and_have_defaults() -> None:
    assert parsed() == ("text", "", "auto", None)
    assert parsed(terminal=False) == ("stdin", "", "auto", None)
    assert parsed("/models/x", "out=echo", "in=http") == ("http", "", "echo", "/models/x")
    assert parsed("in=batch:a=b.jsonl", "x=y") == ("batch", "a=b.jsonl", "auto", "x=y")
    assert parsed("in=dyn://a.b.c", "out=echo") == ("dyn", "dyn://a.b.c", "echo", None)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["in=htpp"], "in=htpp is no input: did you mean 'http'"),
        (["in=http", "in=text"], "in=text comes after in=http"),
        (["in=batch:"], "lacks its file"),
        (["a", "b"], "'b' comes after the model 'a'"),
        (["in=dyn://a.b"], "is no endpoint"),
        (["in=dyn://a.b.metrics"], "choose another last part"),
        (["in=dyn://a.b.c", "out=dyn"], "name an engine"),
    ],
)
def test_what_cannot_be_is_one_sentence(words: list[str], sentence: str) -> None:
    with pytest.raises(StartupError, match=r".+") as caught:
        parse_words(words, terminal=True)
    assert sentence in caught.value.message
