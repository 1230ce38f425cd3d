"""docs/routing.md: its command runs, its trace line is one, and its flags exist."""

import re
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from dynamo_core.cli.simulate import command

PAGE = (Path(__file__).parents[2] / "docs" / "routing.md").read_text()


def test_the_command_of_the_page_runs_on_the_line_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (line,) = re.findall(r"^    (\{.*\})$", PAGE, re.MULTILINE)
    Path("conversation.jsonl").write_text(f"{line}\n{line}\n")
    (arguments,) = re.findall(r"^    dynamo simulate (.*)$", PAGE, re.MULTILINE)
    result = CliRunner().invoke(command, arguments.split())
    assert result.exit_code == 0, result.output
    assert len(re.findall(r"^(?:kv-router|round-robin) +×\d +2/2", result.output, re.MULTILINE)) == 4


def test_every_flag_of_the_page_exists_and_none_is_left_out() -> None:
    rows = "\n".join(re.findall(r"^\| `--.*$", PAGE, re.MULTILINE))
    known = {option for parameter in command.params if isinstance(parameter, click.Option) for option in parameter.opts}
    named = set(re.findall(r"--[a-z-]+", rows))
    assert named <= known
    assert known - named - {"-v", "--verbose", "--help", "--seed", "--trace-block-size"} == set()
