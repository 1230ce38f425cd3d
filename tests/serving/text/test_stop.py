from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from dynamo_core.serving.stop import StopMatcher

letters = st.text("ab\n", max_size=30)
stop_lists = st.lists(st.text("ab\n", min_size=1, max_size=5), min_size=1, max_size=4)


def naive(text: str, stops: list[str], include: bool) -> tuple[str, str | None]:
    """Letter by letter: the first end of a stop string ends the text."""
    for end in range(1, len(text) + 1):
        ended = [stop for stop in stops if text[:end].endswith(stop)]
        if ended:
            longest = max(ended, key=len)
            return text[: end if include else end - len(longest)], longest
    return text, None


@given(letters, stop_lists, st.booleans(), st.lists(st.integers(0, 30), max_size=8))
def test_the_text_ends_at_the_first_stop_string_however_it_is_cut(
    text: str, stops: list[str], include: bool, cuts: list[int]
) -> None:
    matcher = StopMatcher(tuple(stops), include)
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    told, matched = "", None
    for start, end in itertools.pairwise(edges):
        result = matcher.push(text[start:end])
        told += result.text
        matched = result.matched
        if matched is not None:
            break
    told += matcher.flush()
    assert (told, matched) == naive(text, stops, include)


@given(letters, stop_lists)
def test_only_a_possible_beginning_of_a_stop_string_is_held_back(text: str, stops: list[str]) -> None:
    matcher = StopMatcher(tuple(stops), False)
    told = ""
    for end, letter in enumerate(text, 1):
        result = matcher.push(letter)
        told += result.text
        if result.matched is not None:
            break
        held = text[len(told) : end]
        assert not held or any(stop.startswith(held) and stop != held for stop in stops)


def test_a_stop_string_may_span_tokens() -> None:
    matcher = StopMatcher(("\nUser:",), False)
    assert [matcher.push(text) for text in ("Hi", ".\n", "Us", "er", ": x")] == [
        ("Hi", None), (".", None), ("", None), ("", None), ("", "\nUser:"),
    ]  # fmt: skip
    assert matcher.flush() == ""


def test_nothing_comes_after_a_match() -> None:
    matcher = StopMatcher(("END",), True)
    assert matcher.push("a END b") == ("a END", "END")
    assert matcher.push("more") == ("", "END")


def test_a_false_beginning_is_told_in_the_end() -> None:
    matcher = StopMatcher(("END",), False)
    assert matcher.push("the EN") == ("the ", None)
    assert matcher.flush() == "EN"


def test_empty_stop_strings_match_nothing() -> None:
    assert StopMatcher(("",), False).push("abc") == ("abc", None)
