"""Real worker processes, without a frontend."""

import asyncio
import os
import signal
import sys

import msgspec
import pytest

from dynamo_core.config import resolve
from dynamo_core.supervisor.launch import CHILD_COMMAND
from dynamo_core.supervisor.log_stream import LogStream
from dynamo_core.supervisor.order import make_order
from dynamo_core.supervisor.process import ChildStartError, Process, ProcessPlan, ProcessState


@pytest.fixture
def environ(base):
    clean = {name: value for name, value in os.environ.items() if not name.startswith("DYN_")}
    return {**clean, "DYN_FILE_KV": str(base / "kv"), "DYN_RUN_DIR": str(base)}


class Worker:
    """One real child in the hands of a :class:`Process`."""

    def __init__(self, base, environ, **flags):
        resolved = resolve({"engine": "echo", **flags}, environ=environ, file=None)
        order = base / "worker-0.json"
        order.write_bytes(msgspec.json.encode(make_order(resolved, kind="worker", name="worker-0")))
        self.log = bytearray()
        self.stream = LogStream(self.log.extend)
        self.lifeline, self.lifeline_end = os.pipe()
        self.changed = asyncio.Event()
        self.process = Process(
            ProcessPlan(name="worker-0", kind="worker", command=(*CHILD_COMMAND, str(order)), environ=environ),
            lifeline_fd=self.lifeline,
            log=self.stream,
            on_change=lambda _: self.changed.set(),
        )
        self.life = asyncio.create_task(self.process.run())

    async def until(self, state):
        async with asyncio.timeout(30):
            while self.process.state is not state:
                self.changed.clear()
                done, _ = await asyncio.wait(
                    {self.life, asyncio.create_task(self.changed.wait())}, return_when=asyncio.FIRST_COMPLETED
                )
                if self.life in done:
                    self.life.result()

    async def close(self):
        await self.process.stop(5)
        await asyncio.gather(self.life, return_exceptions=True)
        self.stream.close()
        os.close(self.lifeline)
        os.close(self.lifeline_end)


@pytest.fixture
async def worker(base, environ, monkeypatch):
    monkeypatch.chdir(base)
    workers = []

    def start(**flags):
        workers.append(Worker(base, environ, **flags))
        return workers[-1]

    yield start
    for worker in workers:
        await worker.close()


async def test_a_worker_tells_when_it_serves_and_what(worker, model_folder, base):
    started = worker(model=str(model_folder))
    await started.until(ProcessState.READY)
    assert started.process.facts["model"] == "tiny"
    worker_id = started.process.facts["id"]
    assert any(path.name.endswith(f"{worker_id:x}") for path in (base / "kv").rglob("instances*"))
    assert await started.process.ask("status") == {"id": worker_id, "model": "tiny", "asleep": False}


async def test_a_worker_leaves_discovery_and_ends_on_request(worker, model_folder, base):
    started = worker(model=str(model_folder))
    await started.until(ProcessState.READY)
    await started.process.stop(10)
    await started.life
    assert started.process.state is ProcessState.STOPPED
    assert not any((base / "kv").rglob("instances*"))
    assert b"Traceback" not in started.log


async def test_a_killed_worker_comes_back_as_another_instance(worker, model_folder):
    started = worker(model=str(model_folder))
    await started.until(ProcessState.READY)
    first = started.process.facts["id"]
    os.kill(started.process.pid, signal.SIGKILL)
    await started.until(ProcessState.WAITING)
    await started.until(ProcessState.READY)
    assert started.process.restarts == 1
    assert started.process.facts["id"] != first


async def test_what_the_user_can_put_right_is_told_at_once(worker, base):
    with pytest.raises(ChildStartError, match=r"does not exist") as refusal:
        await worker(model=str(base / "nope")).until(ProcessState.READY)
    assert refusal.value.lines == ()


BROKEN = """
from dynamo_core import hookimpl
from dynamo_core.specs import EngineSpec

class Broken:
    def __init__(self, config, context): pass
    async def start(self):
        print("loading shard 1 of 2", flush=True)
        raise RuntimeError("out of memory")
    async def stop(self): pass

@hookimpl
def dynamo_engines():
    return [EngineSpec(name="broken", factory=Broken)]
"""


async def test_an_engine_that_does_not_start_shows_its_last_lines(worker, model_folder, base, environ):
    (base / "broken_engine.py").write_text(BROKEN)
    info = base / "broken-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[dynamo.plugins]\nbroken = broken_engine\n")
    environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(base), environ.get("PYTHONPATH"))))
    with pytest.raises(ChildStartError, match="out of memory") as refusal:
        await worker(engine="broken", model=str(model_folder)).until(ProcessState.READY)
    assert "loading shard 1 of 2" in refusal.value.lines
    assert not any("Traceback" in line for line in refusal.value.lines)


async def test_a_worker_started_by_hand_says_that_it_is_ready_and_ends_with_0(base, environ, model_folder):
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", "from dynamo_core.cli import main; main()"),
        *("worker", "--engine", "echo", "--model", str(model_folder)),
        env=environ, cwd=base, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stderr is not None
    assert (await process.stderr.readline()).endswith(b": starting engine echo\n")
    assert (await process.stderr.readline()).endswith(b": ready\n")
    process.send_signal(signal.SIGINT)
    assert await process.stderr.read() == b""
    assert await process.wait() == 0


def test_the_main_module_of_a_child_is_cheap_to_import_again():
    import subprocess

    code = (
        "import sys, __future__; import dynamo_core; before = set(sys.modules); import dynamo_core.supervisor.child\n"
        "print(sorted(set(sys.modules) - before))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out == "['dynamo_core.supervisor', 'dynamo_core.supervisor.child']\n"
