"""Behaviour that all stores share, and what a folder on disk adds."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamo_core.contracts import Deleted, Discovery, Put, Synced
from dynamo_core.errors import StartupError
from dynamo_core.runtime.discovery.file import FileConfig, FileDiscovery, dynamo_discovery
from dynamo_core.runtime.discovery.folder import LAPSE_SECONDS, Folder
from dynamo_core.runtime.discovery.mem import MemDiscovery
from dynamo_core.runtime.discovery.table import Table
from dynamo_core.testing.provision import required_module


@pytest.fixture(params=["mem", "file", "etcd"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Callable[[], Any]]:
    """Makes started stores that see each other."""
    made: list[Discovery] = []
    table = Table()

    def new() -> Discovery:
        if request.param == "mem":
            return MemDiscovery(table)
        if request.param == "file":
            return FileDiscovery(str(tmp_path / "kv"))
        options = required_module("dynamo_etcd.options")
        config = options.EtcdConfig(endpoints=(request.getfixturevalue("etcd"),), prefix=f"{tmp_path.name}/", lease_ttl_secs=2)
        return required_module("dynamo_etcd.store").EtcdDiscovery(options.from_environment(config))

    async def make() -> Discovery:
        made.append(new())
        await made[-1].start()
        return made[-1]

    yield make
    for one in made:
        await one.close()


async def following(store: Discovery, prefix: str, count: int) -> list[Any]:
    """The first ``count`` events."""
    events = []
    async with asyncio.timeout(10):
        async for event in store.watch(prefix):
            events.append(event)
            if len(events) == count:
                break
    return events


async def test_what_one_puts_the_other_reads(store: Any) -> None:
    one, two = await store(), await store()
    await one.put("instances/a/b/c/1f", b"x")
    await one.put("models/a", b"y")
    assert await two.get_prefix("instances/") == {"instances/a/b/c/1f": b"x"}
    assert await two.get_prefix("") == {"instances/a/b/c/1f": b"x", "models/a": b"y"}


async def test_a_watch_tells_what_is_there_then_synced_then_changes(store: Any) -> None:
    one, two = await store(), await store()
    await one.put("a/1", b"1")
    events = []
    arrived = asyncio.Event()

    async def watch() -> None:
        async for event in two.watch("a/"):
            events.append(event)
            arrived.set()

    task = asyncio.create_task(watch())

    async def until(event: Any) -> None:
        async with asyncio.timeout(10):
            while event not in events:
                arrived.clear()
                await arrived.wait()

    await until(Synced())
    assert events == [Put("a/1", b"1"), Synced()]
    await one.put("a/2", b"2")
    await until(Put("a/2", b"2"))
    await one.put("b/1", b"other")
    await one.put("a/2", b"3")
    await until(Put("a/2", b"3"))
    await one.delete("a/1")
    await until(Deleted("a/1"))
    await one.close()
    await until(Deleted("a/2"))
    assert len(events) == 6
    task.cancel()


async def test_a_store_watches_its_own_puts(store: Any) -> None:
    one = await store()
    await one.put("k", b"v")
    assert await following(one, "", 2) == [Put("k", b"v"), Synced()]


async def test_deleting_what_is_not_there_is_no_error(store: Any) -> None:
    await (await store()).delete("nothing")


async def test_closing_drops_the_own_keys_only(store: Any) -> None:
    one, two = await store(), await store()
    await one.put("one", b"1")
    await two.put("two", b"2")
    await one.close()
    assert await two.get_prefix("") == {"two": b"2"}


@given(st.lists(st.tuples(st.sampled_from(["a/1", "a/2", "b/1"]), st.none() | st.binary(max_size=2)), max_size=20))
def test_a_slow_watcher_ends_up_with_the_true_state(changes: list[tuple[str, bytes | None]]) -> None:
    async def run() -> None:
        table, model, seen = Table(), {"a/1": b"first"}, {}
        table.put("a/1", b"first")
        watch = table.watch("a/")
        async for event in watch:
            if isinstance(event, Synced):
                break
            seen[event.key] = event.value  # type: ignore[union-attr]
        table_watch = aiter(watch)
        pending = asyncio.ensure_future(anext(table_watch))
        await asyncio.sleep(0)
        for key, value in changes:
            if value is None:
                table.delete(key)
                model.pop(key, None)
            else:
                table.put(key, value)
                model[key] = value
        table.put("a/end", b"")
        model["a/end"] = b""
        event = await pending
        while True:
            if isinstance(event, Put):
                seen[event.key] = event.value
                if event.key == "a/end":
                    break
            elif isinstance(event, Deleted):
                seen.pop(event.key, None)
            event = await anext(table_watch)
        assert seen == {key: value for key, value in model.items() if key.startswith("a/")}

    # A watch that is left by `break` inside `async for` stays usable here because the generator is held.
    asyncio.run(run())


# --- the folder --------------------------------------------------------------------------------------------------------------

HOLDER = """
import asyncio, sys
from dynamo_core.runtime.discovery.file import FileDiscovery

async def main():
    store = FileDiscovery(sys.argv[1])
    await store.start()
    await store.put(f"held/{sys.argv[2]}", b"x")
    print("ready", flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


async def hold(path: Path, name: str) -> asyncio.subprocess.Process:
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", HOLDER, str(path), name, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    assert await process.stdout.readline() == b"ready\n"
    return process


async def test_the_keys_of_a_killed_process_disappear_and_the_others_stay(tmp_path: Path) -> None:
    store = FileDiscovery(str(tmp_path))
    await store.start()
    one, two = await hold(tmp_path, "one"), await hold(tmp_path, "two")
    watch = aiter(store.watch("held/"))
    async with asyncio.timeout(10):
        assert {(await anext(watch)).key, (await anext(watch)).key} == {"held/one", "held/two"}
        assert await anext(watch) == Synced()
        one.send_signal(signal.SIGKILL)  # not waited for: the zombie must count as dead
        assert await anext(watch) == Deleted("held/one")
        assert await store.get_prefix("") == {"held/two": b"x"}
        assert len(list(tmp_path.iterdir())) == 2, "the dead process's folder is removed"
        await one.wait()
        two.send_signal(signal.SIGKILL)
        await two.wait()
        assert await anext(watch) == Deleted("held/two")
    await store.close()
    assert list(tmp_path.iterdir()) == []


async def test_folders_and_files_are_private(tmp_path: Path) -> None:
    store = FileDiscovery(str(tmp_path / "kv"))
    await store.start()
    await store.put("a/b", b"x")
    for path in [tmp_path / "kv", *(tmp_path / "kv").iterdir()]:
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
    await store.close()


async def test_everything_is_put_again_when_somebody_removed_the_folder(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "kv")
    folder.create(private=False)
    folder.put("a", b"1")
    folder.put("b", b"2")
    for path in (tmp_path / "kv").rglob("*"):
        if path.is_file():
            path.unlink()
    for path in (tmp_path / "kv").iterdir():
        path.rmdir()
    (tmp_path / "kv").rmdir()
    folder.beat()
    assert folder.scan() == {"a": b"1", "b": b"2"}


def test_a_lease_of_another_host_lapses_by_its_heartbeat(tmp_path: Path) -> None:
    holder, observer = Folder(tmp_path), Folder(tmp_path)
    holder.create(private=False)
    observer.create(private=False)
    holder.put("k", b"v")
    lease = holder._mine / ".lease"
    lease.write_bytes(b'{"pid": 1, "started": 1, "space": "another host"}')
    assert observer.scan() == {"k": b"v"}
    old = lease.stat().st_mtime - LAPSE_SECONDS - 1
    os.utime(lease, (old, old))
    assert observer.scan() == {}
    assert holder._mine.exists()
    holder.beat()
    assert observer.scan() == {"k": b"v"}
    os.utime(lease, (old - 100, old - 100))
    assert observer.scan() == {}
    assert not holder._mine.exists()
    holder.beat()
    assert observer.scan() == {"k": b"v"}


def test_a_later_process_with_the_same_pid_does_not_keep_a_lease_alive(tmp_path: Path) -> None:
    holder, observer = Folder(tmp_path), Folder(tmp_path)
    holder.create(private=False)
    observer.create(private=False)
    holder.put("k", b"v")
    me = holder._me
    stale = f'{{"pid": {me.pid}, "started": {me.started - 1}, "space": "{me.space}"}}'
    (holder._mine / ".lease").write_text(stale)
    assert observer.scan() == {}
    assert not holder._mine.exists()


def test_the_latest_put_counts_where_two_hold_one_key(tmp_path: Path) -> None:
    one, two = Folder(tmp_path), Folder(tmp_path)
    one.create(private=False)
    two.create(private=False)
    one.put("k", b"old")
    for path in one._mine.glob("k"):
        os.utime(path, ns=(1, 1))
    two.put("k", b"new")
    assert one.scan() == two.scan() == {"k": b"new"}
    two.drop()
    assert one.scan() == {"k": b"old"}
    one.delete("k")
    assert one.scan() == {}


def test_broken_files_are_ignored_with_one_log_line_each(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = Folder(tmp_path)
    folder.create(private=False)
    folder.put("good", b"1")
    (folder._mine / "folder").mkdir()
    (folder._mine / "huge").write_bytes(bytes(1024 * 1024 + 1))
    (tmp_path / "stray file").write_text("x")
    (tmp_path / "lease without owner").mkdir()
    (tmp_path / "broken lease").mkdir()
    (tmp_path / "broken lease" / ".lease").write_text("{")
    (tmp_path / "broken lease" / "k").write_text("v")
    for _ in range(3):
        assert folder.scan() == {"good": b"1"}
    assert len(caplog.records) == 3


@pytest.mark.parametrize("key", ["instances/ns/comp/ep/1f", ".hidden", "..", "a b%/ü.lease", ".lease", "x" * 200])
def test_any_key_is_kept_as_it_is(tmp_path: Path, key: str) -> None:
    folder = Folder(tmp_path)
    folder.create(private=False)
    folder.put(key, b"v")
    assert folder.scan() == {key: b"v"}
    folder.delete(key)
    assert folder.scan() == {}


def test_keys_and_values_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    folder.create(private=False)
    for key, value in (("", b""), ("x" * 300, b""), ("k", bytes(1024 * 1024 + 1))):
        with pytest.raises(ValueError):
            folder.put(key, value)
    folder.beat()
    assert folder.scan() == {}


async def test_a_folder_that_cannot_be_used_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StartupError, match="DYN_FILE_KV"):
        await FileDiscovery(str(tmp_path / "file" / "kv")).start()


async def test_a_default_folder_that_others_can_write_to_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    store = FileDiscovery(None)
    await store.start()
    await store.close()
    (tmp_path / f"dynamo-{os.getuid()}").chmod(0o777)
    with pytest.raises(StartupError, match="private"):
        await FileDiscovery(None).start()


async def test_the_environment_names_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DYN_FILE_KV", str(tmp_path / "kv"))
    (spec,) = dynamo_discovery()
    store = spec.factory(FileConfig(), None)  # type: ignore[arg-type]
    await store.start()
    assert (tmp_path / "kv").is_dir()
    await store.close()


async def test_only_news_wakes_the_event_loop(tmp_path: Path) -> None:
    calls: list[Any] = []

    class Spy:
        def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
            self._loop = loop

        def call_soon_threadsafe(self, *call: Any) -> None:
            calls.append(call)
            self._loop.call_soon_threadsafe(*call)

    one, two = FileDiscovery(str(tmp_path)), FileDiscovery(str(tmp_path))
    await one.start()
    await two.start()
    events = two.watch("")
    assert await anext(events) == Synced()
    two._loop = Spy(asyncio.get_running_loop())  # type: ignore[assignment]
    news = asyncio.ensure_future(anext(events))
    await asyncio.sleep(0.5)
    assert not calls
    await one.put("a", b"1")
    assert await news == Put("a", b"1")
    assert len(calls) == 1
    for store in (one, two):
        await store.close()
    async with asyncio.timeout(5):
        while [thread for thread in threading.enumerate() if thread.name == "discovery"]:  # noqa: ASYNC110  # a thread ends when it ends
            await asyncio.sleep(0.01)


async def test_whatever_goes_wrong_in_a_round_the_next_one_comes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = FileDiscovery(str(tmp_path))
    await store.start()
    events = store.watch("")
    assert await anext(events) == Synced()
    news = asyncio.ensure_future(anext(events))
    scan, failures = store._folder.scan, [RuntimeError("a bug"), ValueError("another")]
    monkeypatch.setattr(store._folder, "scan", lambda: scan() if not failures else fail(failures.pop()))
    await store.put("a", b"1")
    assert await asyncio.wait_for(news, 5) == Put("a", b"1")
    assert caplog.text.count("out of reach") == 1
    await store.close()


def fail(error: Exception) -> Any:
    raise error


def test_a_loop_that_was_left_takes_its_thread_along(tmp_path: Path) -> None:
    async def leave() -> None:
        store = FileDiscovery(str(tmp_path))
        await store.start()
        await anext(store.watch(""))

    asyncio.run(leave())
    deadline = time.monotonic() + 5
    while [thread for thread in threading.enumerate() if thread.name == "discovery"]:
        assert time.monotonic() < deadline
        time.sleep(0.01)


async def test_an_outage_keeps_the_last_known_state(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = FileDiscovery(str(tmp_path / "kv"))
    await store.start()
    await store.put("k", b"v")
    watch = aiter(store.watch(""))
    assert [await anext(watch), await anext(watch)] == [Put("k", b"v"), Synced()]
    scanned = asyncio.Event()
    loop = asyncio.get_running_loop()

    def fail() -> Any:
        loop.call_soon_threadsafe(scanned.set)
        raise PermissionError("out of reach")

    scan, store._folder.scan = store._folder.scan, fail  # type: ignore[method-assign]
    for _ in range(3):
        scanned.clear()
        await asyncio.wait_for(scanned.wait(), 5)
    assert len(caplog.records) == 1
    store._folder.scan = scan  # type: ignore[method-assign]
    await store.put("k", b"w")
    assert await asyncio.wait_for(anext(watch), 5) == Put("k", b"w")
    await store.close()
