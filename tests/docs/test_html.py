"""The documentation builds without a warning: every link to a page and a heading leads somewhere."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"


def test_every_page_is_built_and_listed(tmp_path: Path) -> None:
    if not all(importlib.util.find_spec(name) for name in ("sphinx", "myst_parser", "furo")) and not os.environ.get("CI"):
        pytest.skip("pip install --group docs")
    html = tmp_path / "html"
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", "-d", str(tmp_path / "trees")]
    done = subprocess.run([*command, str(DOCS), str(html)], capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stderr
    for page in DOCS.glob("*.md"):
        assert (html / f"{page.stem}.html").is_file()
