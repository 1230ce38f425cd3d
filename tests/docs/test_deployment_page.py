"""The commands of the deployment page are the command line's, and its settings those of the plugins."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path

import click
import msgspec
import pytest

from dynamo_core.cli.group import root
from dynamo_core.config import resolve
from dynamo_core.runtime.planes.tcp import TcpConfig

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "deployment.md").read_text()


def fences(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


COMMANDS = [
    line for block in fences("console") for line in block.splitlines() if re.search(r"(^|\s)dynamo (frontend|worker)", line)
]


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_parse_and_their_variables_are_settings(line: str) -> None:
    words = shlex.split(line)
    start = words.index("dynamo")
    environ = dict(word.split("=", 1) for word in words[:start])
    command = root.get_command(click.Context(root), words[start + 1])
    assert command is not None
    flags = dict(command.make_context(words[start + 1], words[start + 2 :]).params)
    named = flags.pop("config")
    flags.pop("verbose", None)
    settings = resolve(flags, environ=environ, file=named).settings
    assert settings.router == "kv-router" or settings.engine == "vllm"


def test_the_tables_settings_are_those_of_the_plugin() -> None:
    (text,) = fences("toml")
    table = tomllib.loads(text)["plugins"]["tcp"]
    assert msgspec.convert(table, TcpConfig).tls_verify_clients
    sources = "".join(path.read_text() for path in (ROOT / "dynamo_core").rglob("*.py"))
    for name in re.findall(r"\b(?:DYN|ETCD|NATS)_[A-Z_]+[A-Z]\b", PAGE):
        plugins = "".join(path.read_text() for path in (ROOT / "plugins").glob("*/src/**/*.py"))
        assert f'"{name}"' in sources + plugins, name


def test_the_files_that_are_named_exist_and_defaults_are_true() -> None:
    for name in re.findall(r"contrib/deploy/[\w./-]+\w", PAGE):
        assert (ROOT / name).exists(), name
    config = TcpConfig()
    assert f"`heartbeat_secs` ({config.heartbeat_secs:g})" in PAGE
    assert f"`heartbeats_missed` ({config.heartbeats_missed})" in PAGE
    assert f"after {config.heartbeat_secs * config.heartbeats_missed:g} s" in PAGE
