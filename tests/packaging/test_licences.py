"""Whatever can be installed from this repository says its licence, and what is published carries its text."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECTS = [ROOT, *sorted(path.parent for folder in ("plugins", "examples") for path in (ROOT / folder).glob("*/pyproject.toml"))]


@pytest.mark.parametrize("project", PROJECTS, ids=lambda path: path.name)
def test_projects_say_their_licence(project: Path) -> None:
    table = tomllib.loads((project / "pyproject.toml").read_text())["project"]
    assert table["license"] == "Apache-2.0"
    if project.parent.name != "examples":
        assert table["license-files"] == ["LICENSE"]
        assert (project / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
