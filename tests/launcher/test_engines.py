from __future__ import annotations

from pathlib import Path

import pytest

from dynamo_core.errors import StartupError
from dynamo_core.launcher.engines import FoundEngine, choose_engine, find_engines

ECHO = FoundEngine(name="echo", plugin="echo", needs_model=False)
MOCKER = FoundEngine(name="mocker", plugin="mocker", needs_model=False)
REAL = FoundEngine(name="real", plugin="real")
BROKEN = FoundEngine(name="broken", plugin="broken", problem="needs a library: pip install it")


def test_engines_are_found_in_installed_plugins_unless_left_out() -> None:
    found = {engine.name: engine for engine in find_engines()}
    assert found["echo"].usable
    assert not found["echo"].needs_model
    assert "round-robin" not in found
    assert "echo" not in {engine.name for engine in find_engines(blocked=("echo",))}


def test_weights_choose_the_engine_that_computes_with_them(tmp_path: Path) -> None:
    found = (BROKEN, ECHO, MOCKER, REAL)
    assert choose_engine(found, str(tmp_path)) == ECHO
    (tmp_path / "model.safetensors").touch()
    assert choose_engine(found, str(tmp_path)) == REAL
    assert choose_engine((BROKEN, MOCKER, ECHO), str(tmp_path)) == ECHO


def test_without_a_usable_engine_it_says_what_to_do() -> None:
    with pytest.raises(StartupError, match="No engine can run here: install one"):
        choose_engine((BROKEN,), None)
