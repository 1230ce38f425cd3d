"""The private folder of one run, and how ``dynamo status`` finds it.

``<base>/serve-xxxxxxxx/`` (mode 0700) holds ``lock`` (locked while the supervisor lives), ``run.json``, the admin socket, the
children's orders and, unless another is named, the discovery folder ``kv``.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec

from dynamo_core.errors import StartupError

__all__ = ["SOCKET_PATH_LIMIT", "RunFolder", "RunState", "find_runs", "run_bases"]

SOCKET_PATH_LIMIT = 107
"""Bytes of a Unix socket's path (``sun_path`` less the terminating zero)."""

_ROOM_FOR_NAMES = 48
"""Bytes of a path below the base that sockets may need: the run's folder, a process's folder and a name."""

_PREFIX = "serve-"


class RunState(msgspec.Struct, frozen=True, kw_only=True):
    """What a running ``dynamo serve`` says about itself to other processes of the same user."""

    pid: int
    started: float
    """Seconds since the epoch."""
    version: str
    http_host: str
    http_port: int
    url: str
    namespace: str
    admin: str
    """Path of the admin socket."""


def run_bases(run_dir: str | None, environ: Mapping[str, str] = os.environ) -> list[Path]:
    """Where runs may have their folders, the preferred place first: ``run_dir`` if named, else this user's temporary places."""
    if run_dir is not None:
        return [Path(run_dir).absolute()]
    user = f"dynamo-{os.getuid()}"
    bases = [Path(tempfile.gettempdir(), user), Path("/tmp", user)]  # noqa: S108 - checked to be ours, with mode 0700, before use
    runtime_dir = environ.get("XDG_RUNTIME_DIR")
    if runtime_dir and Path(runtime_dir).is_dir():
        bases.insert(0, Path(runtime_dir, "dynamo"))
    return list(dict.fromkeys(bases))


class RunFolder:
    """The folder while its supervisor lives. Make it with :meth:`create`."""

    def __init__(self, path: Path, lock_fd: int) -> None:
        self.path = path
        self._lock_fd = lock_fd

    @classmethod
    def create(cls, run_dir: str | None, environ: Mapping[str, str] = os.environ) -> RunFolder:
        """Make a folder of this run's own and sweep those that dead runs left. Raises :class:`StartupError`."""
        base = _usable_base(run_bases(run_dir, environ), named=run_dir is not None)
        for state_file in base.glob(f"{_PREFIX}*/run.json"):
            _sweep(state_file.parent)
        try:
            path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=base))
            lock_fd = os.open(path / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StartupError(_unusable(base, error)) from None
        fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return cls(path, lock_fd)

    def publish(self, state: RunState) -> None:
        """From here on ``dynamo status`` finds this run."""
        self.write("run.json", msgspec.json.encode(state))

    def write(self, name: str, data: bytes) -> Path:
        """A file that only this user can read, whole or not there at all."""
        path, partial = self.path / name, self.path / f"{name}.part"
        try:
            fd = os.open(partial, os.O_CREAT | os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with os.fdopen(fd, "wb") as file:
                file.write(data)
            partial.replace(path)
        except OSError as error:
            raise StartupError(_unusable(self.path, error)) from None
        return path

    def folder(self, name: str) -> Path:
        path = self.path / name
        path.mkdir(mode=0o700, exist_ok=True)
        return path

    def close(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock_fd)


def find_runs(run_dir: str | None = None, environ: Mapping[str, str] = os.environ) -> list[RunState]:
    """Every living run of this user, the oldest first. Looks where :meth:`RunFolder.create` would make a folder."""
    bases = [base for base in run_bases(run_dir, environ) if _is_short(base)]
    return sorted(_living(bases[0]), key=lambda state: state.started) if bases else []


def _living(base: Path) -> Iterator[RunState]:
    for state_file in base.glob(f"{_PREFIX}*/run.json"):
        with contextlib.suppress(OSError, msgspec.DecodeError):  # swept or damaged: nobody to talk to
            if not _is_dead(state_file.parent):
                yield msgspec.json.decode(state_file.read_bytes(), type=RunState)


def _is_dead(folder: Path) -> bool:
    """A lock that can be had belongs to nobody: it goes with its process, whatever ended it."""
    with (folder / "lock").open("rb+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


def _sweep(folder: Path) -> None:
    with contextlib.suppress(OSError):
        if _is_dead(folder):
            shutil.rmtree(folder, ignore_errors=True)


def _is_short(base: Path) -> bool:
    return len(os.fsencode(base)) + _ROOM_FOR_NAMES <= SOCKET_PATH_LIMIT


def _usable_base(bases: list[Path], *, named: bool) -> Path:
    problem = ""
    for base in bases:
        if not _is_short(base):
            problem = f"The run folder {base} has too long a path for Unix sockets: name one of at most "
            problem += f"{SOCKET_PATH_LIMIT - _ROOM_FOR_NAMES} characters with DYN_RUN_DIR."
            continue
        try:
            base.mkdir(mode=0o700, parents=True, exist_ok=True)
            status = base.lstat()
        except OSError as error:
            problem = _unusable(base, error)
            continue
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or (not named and status.st_mode & 0o077):
            problem = f"The run folder {base} is not a private folder of yours: remove it, or name another with DYN_RUN_DIR."
            continue
        return base
    raise StartupError(problem)


def _unusable(path: Path, error: OSError) -> str:
    reason = os.strerror(error.errno or 0).lower()
    return f"The run folder {path} cannot be written ({reason}): make room or name another with DYN_RUN_DIR."
