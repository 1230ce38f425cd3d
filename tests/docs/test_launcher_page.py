from __future__ import annotations

import re
from pathlib import Path

from click.testing import CliRunner

from dynamo_core.cli.run import command
from dynamo_core.launcher.batch import BatchSummary
from dynamo_core.launcher.words import parse_words

TEXT = (Path(__file__).parents[2] / "docs" / "launcher.md").read_text(encoding="utf-8")


def test_every_command_on_the_page_is_understood() -> None:
    commands = re.findall(r"^.*?dynamo run ([^#\n]*?)(?: +#.*)?$", re.search(r"```\n(.*?)```", TEXT, re.DOTALL)[1], re.MULTILINE)
    assert len(commands) == 6
    inputs = {parse_words(words.split(), terminal=False).input for words in commands}
    assert inputs == {"http", "text", "stdin", "batch", "dyn"}


def test_every_flag_on_the_page_exists() -> None:
    known = set(CliRunner().invoke(command, ["--help"]).output.split())
    flags = set(re.findall(r"`(--[a-z-]+)", TEXT)) - {"--api-key", "--url", "--version"}
    known_words = {flag for word in known for flag in word.rstrip(",").split("/")}
    assert flags <= known_words


def test_every_slash_command_on_the_page_exists_and_none_is_missing() -> None:
    from dynamo_core.launcher.conversation import _HELP

    on_page = set(re.findall(r"`/([a-z]+)", TEXT))
    assert on_page == set(re.findall(r"^  /([a-z]+)", _HELP, re.MULTILINE))


def test_a_summary_tells_what_the_page_says() -> None:
    text = BatchSummary(
        requests=2, failed=0, tokens_in=3, tokens_out=4, seconds=2.0, ttft_p50=0.1, ttft_p99=0.2, latency_p50=0.3, latency_p99=0.4
    ).text()
    assert "2.0 tokens/s" in text
    assert "p99 0.400 s" in text
