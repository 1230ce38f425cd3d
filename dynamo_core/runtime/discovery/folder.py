"""The store on disk: a folder a lease, a file a key. Everything here blocks and is called from the store's own thread.

::

    root/                 0700
        3f2a…/            one lease
            .lease        who holds it (JSON); its modification time is the heartbeat
            instances%2F… one key, its value the content; written aside and renamed, so never seen half done

A lease folder's modification time changes with every key, so a scan reads only the folders that changed.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shutil
import time
from pathlib import Path
from urllib.parse import quote, unquote

import msgspec

from dynamo_core.errors import StartupError
from dynamo_core.runtime.discovery.owner import Owner

__all__ = ["HEARTBEAT_SECONDS", "LAPSE_SECONDS", "Folder"]

_log = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 2.5
LAPSE_SECONDS = 10.0
"""Without a heartbeat, of holders whose process this host cannot see."""
_KEEP_SECONDS = 60.0
"""A lapsed lease is ignored at once but removed only then: clocks of two hosts may differ, and holders may be paused."""
_RACY_NS = 100_000_000
"""A folder that changed this recently may change again within one tick of the file system's clock: it is read again."""
_LEASE = ".lease"
_MAX_VALUE = 1024 * 1024


class _Lease:
    """What the last scan saw of one lease folder."""

    __slots__ = ("owner", "stamp", "values")

    def __init__(self) -> None:
        self.stamp = -1
        self.owner: Owner | None = None
        self.values: dict[str, tuple[int, bytes]] = {}
        """Key → when it was written, and the value."""


class Folder:
    def __init__(self, root: Path) -> None:
        self._root = root
        self._me = Owner.current()
        self._mine = root / f"{time.time_ns():x}-{secrets.token_hex(6)}"
        self._own: dict[str, bytes] = {}
        self._leases: dict[str, _Lease] = {}
        self._reported: set[str] = set()

    def create(self, *, private: bool) -> None:
        """Make the root and the lease. Raises StartupError. ``private``: refuse a root that others could have prepared."""
        try:
            if private:
                self._root.parent.mkdir(mode=0o700, exist_ok=True)
                _check_private(self._root.parent)
            self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
            if private:
                _check_private(self._root)
            self._make_lease()
        except OSError as error:
            reason = error.strerror or str(error)
            raise StartupError(f"the discovery folder {self._root} cannot be used ({reason}): set DYN_FILE_KV") from None

    def put(self, key: str, value: bytes) -> None:
        _file_name(key)
        if len(value) > _MAX_VALUE:
            raise ValueError(f"the value of {key} has {len(value)} bytes; at most {_MAX_VALUE} are stored")
        self._own[key] = value
        try:
            self._write(key, value)
        except FileNotFoundError:
            self._restore()

    def delete(self, key: str) -> None:
        self._own.pop(key, None)
        name = _file_name(key)
        for lease in self._folders():
            with contextlib.suppress(OSError):
                (lease / name).unlink()

    def beat(self) -> None:
        """Renew the lease; put everything again if somebody removed it."""
        try:
            os.utime(self._mine / _LEASE)
        except FileNotFoundError:
            self._restore()

    def drop(self) -> None:
        self._own.clear()
        shutil.rmtree(self._mine, ignore_errors=True)

    def scan(self) -> dict[str, bytes]:
        """The living leases' keys. Where several hold one key, the one written last counts. Removes the leases of the dead."""
        found = {folder.name: folder for folder in self._folders()}
        for name in self._leases.keys() - found.keys():
            del self._leases[name]
        merged: dict[str, tuple[int, bytes]] = {}
        for name, folder in found.items():
            lease = self._leases.setdefault(name, _Lease())
            if not self._refresh(folder, lease):
                continue
            for key, entry in lease.values.items():
                if key not in merged or entry[0] > merged[key][0]:
                    merged[key] = entry
        return {key: value for key, (_, value) in merged.items()}

    def _folders(self) -> list[Path]:
        try:
            with os.scandir(self._root) as entries:
                return [Path(entry.path) for entry in entries if entry.is_dir(follow_symlinks=False)]
        except FileNotFoundError:
            return []

    def _refresh(self, folder: Path, lease: _Lease) -> bool:
        """Bring ``lease`` up to date; False when its holder is dead or unknown."""
        try:
            stamp = folder.stat().st_mtime_ns
            if stamp != lease.stamp:
                self._read(folder, lease)
                lease.stamp = stamp if time.time_ns() - stamp > _RACY_NS else -1
            if folder == self._mine:
                return True
            alive = lease.owner.alive(self._me) if lease.owner else None
            if alive is None:
                beat = (folder / _LEASE).stat().st_mtime if lease.owner else stamp / 1e9
                age = time.time() - beat
                alive = lease.owner is not None and age <= LAPSE_SECONDS
                keep = age <= _KEEP_SECONDS
            else:
                keep = alive
        except OSError:
            return False  # removed while we looked
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)
        return alive

    def _read(self, folder: Path, lease: _Lease) -> None:
        values: dict[str, tuple[int, bytes]] = {}
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name == _LEASE:
                    lease.owner = self._read_owner(Path(entry.path))
                elif not entry.name.startswith("."):
                    status = entry.stat(follow_symlinks=False)
                    if not entry.is_file(follow_symlinks=False) or status.st_size > _MAX_VALUE:
                        self._complain(entry.path, "it is no file of at most 1 MiB")
                        continue
                    values[unquote(entry.name)] = (status.st_mtime_ns, Path(entry.path).read_bytes())
        lease.values = values

    def _read_owner(self, path: Path) -> Owner | None:
        try:
            return msgspec.json.decode(path.read_bytes(), type=Owner)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            self._complain(str(path), str(error))
            return None

    def _complain(self, path: str, reason: str) -> None:
        if path not in self._reported:
            self._reported.add(path)
            _log.warning("%s in the discovery folder is ignored: %s", path, reason)

    def _make_lease(self) -> None:
        self._mine.mkdir(mode=0o700, parents=True, exist_ok=True)
        aside = self._mine / f".{secrets.token_hex(4)}"
        aside.write_bytes(msgspec.json.encode(self._me))
        aside.rename(self._mine / _LEASE)

    def _restore(self) -> None:
        _log.warning("the lease folder %s had been removed; everything is put again", self._mine)
        self._make_lease()
        for key, value in self._own.items():
            self._write(key, value)

    def _write(self, key: str, value: bytes) -> None:
        aside = self._mine / f".{secrets.token_hex(4)}"
        aside.write_bytes(value)
        aside.rename(self._mine / _file_name(key))


def _file_name(key: str) -> str:
    name = quote(key, safe="")
    if len(name) > 253 or not name:
        raise ValueError(f"{key!r} is no key: 1 to 253 bytes, percent-encoded")
    return name.replace(".", "%2E", 1) if name.startswith(".") else name


def _check_private(root: Path) -> None:
    status = root.lstat()
    if root.is_symlink() or status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise StartupError(f"the discovery folder {root} is not private to this user: set DYN_FILE_KV to one that is")
