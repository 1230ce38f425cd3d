"""The peers' own virtual environment, made from the package index by pip: nothing of theirs gets near ours."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

__all__ = ["prepare"]

_HERE = Path(__file__).parents[1]
_STAMP = "peers-installed"


def prepare(folder: Path) -> dict[str, str]:
    """Install what is missing. Returns requirement → pip's last line, for those that could not be installed.

    A folder that somebody else made (it has a Python but not our stamp) is taken as it is.
    """
    python, stamp = folder / "bin" / "python", folder / _STAMP
    wanted = _wanted()
    if python.exists() and (not stamp.exists() or stamp.read_text() == wanted):
        return {}
    print(f"preparing the peers' environment in {folder} (some minutes, once)", flush=True)
    if not python.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    stamp.write_text("incomplete\n")
    failed = _install(python, "requirements-dynamo.txt", "--no-deps") | _install(python, "requirements-peers.txt")
    if not failed:
        stamp.write_text(wanted)
    return failed


def _wanted() -> str:
    return "".join((_HERE / name).read_text() for name in ("requirements-dynamo.txt", "requirements-peers.txt"))


def _install(python: Path, file: str, *flags: str) -> dict[str, str]:
    """The whole file at once; where that fails, line by line, so that one package that cannot be had costs only itself."""
    if not _pip(python, [*flags, "-r", str(_HERE / file)]):
        return {}
    lines = [line for line in (_HERE / file).read_text().splitlines() if line and not line.startswith("#")]
    return {line: why for line in lines if (why := _pip(python, [*flags, line]))}


def _pip(python: Path, arguments: Sequence[str]) -> str:
    """Empty, or pip's last line."""
    command = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    return "" if done.returncode == 0 else (lines[-1] if lines else f"pip ended with exit code {done.returncode}")
