import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

CompletedProcess = subprocess.CompletedProcess


@pytest.fixture
def folder() -> Iterator[Path]:
    """Working folder and place of run folders; short, as Unix sockets want it."""
    with tempfile.TemporaryDirectory(prefix="dyn", dir="/tmp") as path:
        yield Path(path)


@pytest.fixture
def model(folder: Path) -> Path:
    path = folder / "tiny"
    path.mkdir()
    (path / "config.json").write_text("{}")
    (path / "tokenizer.json").write_text(json.dumps({"model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}}))
    return path


@pytest.fixture
def dynamo(folder: Path) -> Callable[..., CompletedProcess[str]]:
    """Run the command as a user would, away from the user's own settings."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("DYN_")}

    def run(*arguments: str, **environ: str) -> CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", "from dynamo_core.cli import main; main()", *arguments],
            env={**clean, "DYN_RUN_DIR": str(folder / "run"), **environ},
            cwd=folder, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip

    return run


@pytest.fixture
def refused(dynamo: Callable[..., CompletedProcess[str]]) -> Callable[..., str]:
    """Run a command that must fail with exit code 2 and one sentence, which is returned."""

    def run(*arguments: str, **environ: str) -> str:
        done = dynamo(*arguments, **environ)
        assert done.returncode == 2, done
        assert done.stdout == ""
        (sentence,) = done.stderr.splitlines()
        return sentence

    return run
