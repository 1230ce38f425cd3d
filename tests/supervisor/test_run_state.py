import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dynamo_core.errors import StartupError
from dynamo_core.supervisor.run_state import RunFolder, RunState, find_runs, run_bases


def state(folder: RunFolder, port: int = 8000, started: float = 1.0) -> RunState:
    return RunState(
        pid=os.getpid(), started=started, version="0", http_host="127.0.0.1", http_port=port, url=f"http://127.0.0.1:{port}",
        namespace="dynamo", admin=str(folder.path / "admin.sock"),
    )  # fmt: skip


def test_a_published_run_is_found_until_its_folder_is_closed(base):
    folder = RunFolder.create(str(base))
    assert find_runs(str(base)) == []
    folder.publish(state(folder))
    assert find_runs(str(base)) == [state(folder)]
    folder.close()
    assert find_runs(str(base)) == []
    assert list(base.iterdir()) == []


def test_runs_are_listed_oldest_first(base):
    folders = [RunFolder.create(str(base)) for _ in range(3)]
    for folder, started in zip(folders, (3.0, 1.0, 2.0), strict=True):
        folder.publish(state(folder, started=started))
    assert [run.started for run in find_runs(str(base))] == [1.0, 2.0, 3.0]
    for folder in folders:
        folder.close()


def test_what_a_killed_run_left_is_not_found_and_is_swept_by_the_next(base):
    code = (
        "import os, sys; from dynamo_core.supervisor.run_state import RunFolder, RunState\n"
        "state = dict.fromkeys(('version', 'http_host', 'url', 'namespace', 'admin'), '')\n"
        f"folder = RunFolder.create({str(base)!r})\n"
        "folder.publish(RunState(pid=os.getpid(), **state, started=1, http_port=1))\n"
        "os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code], check=False)
    (left,) = base.iterdir()
    assert find_runs(str(base)) == []
    folder = RunFolder.create(str(base))
    assert not left.exists()
    folder.close()


def test_a_damaged_state_file_is_passed_over(base):
    folder = RunFolder.create(str(base))
    folder.write("run.json", b"{")
    assert find_runs(str(base)) == []
    folder.close()


def test_folders_and_files_are_private(base):
    folder = RunFolder.create(str(base / "inner"))
    path = folder.write("secret.json", b"{}")
    assert folder.path.stat().st_mode & 0o777 == 0o700
    assert path.stat().st_mode & 0o777 == 0o600
    folder.close()


def test_the_user_s_runtime_folder_comes_before_the_temporary_one(base):
    bases = run_bases(None, {"XDG_RUNTIME_DIR": str(base)})
    assert bases[0] == base / "dynamo"
    assert bases[1].name == f"dynamo-{os.getuid()}"


def test_a_runtime_folder_that_does_not_exist_is_passed_over():
    assert all(path.name == f"dynamo-{os.getuid()}" for path in run_bases(None, {"XDG_RUNTIME_DIR": "/no/such/folder"}))


def test_a_temporary_folder_with_a_long_path_gives_way_to_tmp(base, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(base / ("x" * 80)))
    folder = RunFolder.create(None, {})
    try:
        assert folder.path.parent == Path("/tmp", f"dynamo-{os.getuid()}")
        folder.publish(state(folder))
        assert state(folder) in find_runs(None, {})
    finally:
        folder.close()


def test_a_named_folder_with_a_long_path_is_refused(base):
    with pytest.raises(StartupError, match=r"too long a path .* at most 59 characters with DYN_RUN_DIR"):
        RunFolder.create(str(base / ("x" * 80)))


def test_a_folder_that_cannot_be_made_is_refused(base):
    (base / "file").touch()
    with pytest.raises(StartupError, match="cannot be written"):
        RunFolder.create(str(base / "file" / "inner"))


def test_somebody_else_s_folder_is_refused(base, monkeypatch):
    user = base / f"dynamo-{os.getuid()}"
    user.mkdir(mode=0o755)
    monkeypatch.setattr("dynamo_core.supervisor.run_state.run_bases", lambda *_: [user])
    with pytest.raises(StartupError, match="is not a private folder of yours"):
        RunFolder.create(None, {})
    shutil.rmtree(user)
