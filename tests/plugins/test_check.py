"""What ``dynamo plugins check`` finds, each with a plugin that has the fault."""

import textwrap
from pathlib import Path

import pytest

from dynamo_core.errors import PluginError
from dynamo_core.plugins import check
from dynamo_core.plugins.check import check_plugin

GOOD = '''
"""Does nothing, and well."""
import msgspec
from dynamo_core import hookimpl
from dynamo_core.specs import EngineSpec

class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    speed: float = 1.0
    """Tokens a second."""

@hookimpl
def dynamo_config(): return Config

@hookimpl
def dynamo_engines(): yield EngineSpec(name="good", factory=lambda config, context: None)
'''
WAITING = """
from dynamo_core.specs import RouterSpec

class Waiting:
    def __init__(self, config=None, context=None): pass
    async def select(self, requests, workers): return []

@hookimpl
def dynamo_routers(): yield RouterSpec(name="waiting", factory=Waiting)
"""
PROJECT = """
[project]
name = "good-plugin"
version = "1.0"
description = "A plugin."
requires-python = ">=3.11"
dependencies = ["dynamo-core"]

[project.entry-points."dynamo.plugins"]
good = "good_plugin"
"""


def module(folder: Path, code: str) -> str:
    path = folder / "good_plugin.py"
    path.write_text(textwrap.dedent(code))
    return str(path)


def findings(target: str) -> list[tuple[str, str]]:
    (checked,) = check_plugin(target)
    return [(finding.check, finding.message) for finding in checked.findings]


def test_a_good_module_and_a_good_folder_have_no_findings(tmp_path: Path) -> None:
    assert findings(module(tmp_path, GOOD)) == []
    (tmp_path / "pyproject.toml").write_text(PROJECT)
    (tmp_path / "README.md").write_text("# good")
    (checked,) = check_plugin(str(tmp_path))
    assert (checked.name, checked.findings) == ("good", ())
    assert checked.import_seconds is not None


def test_an_installed_plugin_is_checked_by_name() -> None:
    assert findings("echo") == []


@pytest.mark.parametrize(
    ("code", "kind", "words"),
    [
        ("raise ValueError('boom')", "import", "cannot be imported from good_plugin: ValueError: boom"),
        ("import sys; sys.exit(3)", "import", "SystemExit"),
        ("import os; os._exit(3)", "import", "importing it ends the process: exit code 3"),
        ("import threading as t; t.Thread(target=t.Event().wait).start()" + GOOD, "import", "it starts threads (Thread-"),
        ("import socket; s = socket.socket()" + GOOD, "import", "it opens sockets"),
        ("print('hello')" + GOOD, "import", "it prints ('hello')"),
        (GOOD.replace("def dynamo_engines", "def dynamo_engine"), "hooks", "dynamo_engine: did you mean 'dynamo_engines'?"),
        (GOOD.replace("def dynamo_engines()", "def dynamo_engines(requets)"), "hooks", "does not give, requets"),
        (GOOD.replace("frozen=True, ", ""), "configuration", "must be declared with frozen=True"),
        (GOOD.replace('    """Tokens a second."""', ""), "configuration", "key speed has no text below it"),
        (GOOD.replace('name="good"', 'name="good", api=2'), "records", "written for version 2 of the engine contract"),
        (GOOD.replace("lambda config, context: None", "lambda config: None"), "records", "callable as factory(config, context)"),
        (GOOD.replace("lambda config, context: None", "7"), "records", "callable as factory(config, context)"),
        (GOOD.replace('"""Does nothing, and well."""', ""), "docs", "no docstring"),
        (GOOD + WAITING, "records", "router 'waiting' has an asynchronous select"),
        (GOOD + WAITING.replace("factory=Waiting", "factory=lambda *_: Waiting()"), "records", "has an asynchronous select"),
        (GOOD + WAITING.replace("factory=Waiting", "factory=lambda *_: 1 / 0"), "records", "'waiting' cannot be made"),
    ],
)  # fmt: skip
def test_a_fault_is_one_finding(tmp_path: Path, code: str, kind: str, words: str) -> None:
    if not code.startswith("\n") and '"""Does' in code:  # a docstring comes first
        first, _, rest = code.partition("\n")
        code = rest.replace("import msgspec\n", f"import msgspec\n{first}\n", 1)
    ((found, message),) = findings(module(tmp_path, code))
    assert found == kind
    assert words in message


def test_an_engine_brought_along_is_a_finding(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("")
    target = module(tmp_path, GOOD.replace("import msgspec", "import msgspec, torch", 1))
    assert [message for _, message in findings(target)] == [
        "importing it brings torch: import that where it is used, such as in the factory."
    ]


def test_a_slow_import_is_a_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "IMPORT_SECONDS", 0.0)
    ((kind, message),) = findings(module(tmp_path, GOOD))
    assert kind == "import"
    assert "import lazily" in message


def test_required_keys_are_no_fault(tmp_path: Path) -> None:
    assert findings(module(tmp_path, GOOD.replace("float = 1.0", "float"))) == []


def test_bare_metadata_are_findings_of_their_own(tmp_path: Path) -> None:
    module(tmp_path, GOOD)
    (tmp_path / "pyproject.toml").write_text(
        '[project]\nname = "x"\n[project.entry-points."dynamo.plugins"]\nGood = "good_plugin"\n'
    )
    assert [message for _, message in findings(str(tmp_path))] == [
        "pyproject.toml lacks project.description.",
        "pyproject.toml lacks project.requires-python.",
        "pyproject.toml lacks project.version.",
        "pyproject.toml does not name dynamo-core among project.dependencies.",
        "the folder has no README: say what the plugin does, its configuration and an example.",
        "'Good' must be lower case letters, digits and hyphens.",
    ]


def test_a_package_without_an_entry_point_is_told_which(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text(PROJECT.partition("[project.entry")[0])
    (tmp_path / "README.md").write_text("# good")
    assert findings(str(tmp_path)) == [("metadata", 'pyproject.toml has no [project.entry-points."dynamo.plugins"] table.')]


@pytest.mark.parametrize(
    ("target", "sentence"),
    [
        ("moker-x-y", "plugin 'moker-x-y' is not installed"),
        ("./nowhere", "./nowhere is neither a folder nor a Python module"),
        (".", ". has no pyproject.toml"),
    ],
)
def test_nothing_to_look_at_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str, sentence: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PluginError, match=sentence.replace(".", r"\.")):
        check_plugin(target)
