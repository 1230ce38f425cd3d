"""A vLLM that does not start, and one whose engine core dies."""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import msgspec
import pytest

from dynamo_core.contracts import EngineContext
from dynamo_core.errors import ConfigError, StartupError
from dynamo_vllm.engine import VllmEngine

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(300), pytest.mark.filterwarnings("ignore")]

# In a process of its own: vLLM's metrics are the process's, and the other tests' engine keeps its own in this one.
PROGRAM = """\
import asyncio, json, multiprocessing, sys, tempfile
from dynamo_core.contracts import Context, EngineContext, EngineRequest, SamplingParams, StopConditions
from dynamo_vllm.engine import VllmEngine

def say(**fields):
    print(json.dumps(fields), flush=True)

class Sink:
    said = False
    def __init__(self): self.over = asyncio.Event()
    def token(self, token_id):
        if not self.said:
            self.said = True
            say(event="streaming", core=[child.pid for child in multiprocessing.active_children()])
    def chunk(self, chunk):
        if chunk.finish_reason:
            say(event="over", finish_reason=chunk.finish_reason)
            self.over.set()

async def main():
    context = EngineContext(
        model_path=sys.argv[1], model_name="tiny", worker_id=1, run_dir=tempfile.mkdtemp(), args={"max_model_len": 4096},
        on_fatal=lambda message: say(event="fatal", message=message),
    )
    engine = VllmEngine(None, context)
    await engine.start()
    sink = Sink()
    greedy, stop = SamplingParams(temperature=0.0), StopConditions(max_tokens=4000, ignore_eos=True)
    engine.submit(EngineRequest(id="r", token_ids=[20] * 40, sampling=greedy, stop=stop), sink, Context())
    await sink.over.wait()
    try:
        engine.submit(EngineRequest(id="s", token_ids=[20]), sink, Context())
    except Exception as error:
        say(event="refused", error=type(error).__name__)
    await engine.drain()
    await engine.stop()
    say(event="stopped")

if __name__ == "__main__":
    asyncio.run(main())
"""


@pytest.fixture(autouse=True)
def _collected() -> Iterator[None]:
    """What a failed start left open in vLLM goes while warnings of it are still ignored."""
    yield
    gc.collect()


@pytest.fixture
async def program(tiny_model: Path, tmp_path: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    process = await asyncio.create_subprocess_exec(
        sys.executable, script, tiny_model, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
    )
    yield process
    if process.returncode is None:
        process.kill()
        await process.wait()


async def read(process: asyncio.subprocess.Process) -> dict[str, object]:
    assert process.stdout is not None
    return msgspec.json.decode(await process.stdout.readline(), type=dict[str, object])


def children(pid: int) -> set[int]:
    """All that descend from ``pid`` and live."""
    parents: dict[int, int] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if fields[0] != "Z":
                parents[int(folder.name)] = int(fields[1])
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {pid}


def alive(pid: int) -> bool:
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


async def test_a_dead_engine_core_is_fatal_at_once_and_ends_its_streams(program: asyncio.subprocess.Process) -> None:
    streaming = await read(program)
    (core,) = streaming["core"]  # type: ignore[misc]
    os.kill(core, signal.SIGKILL)
    async with asyncio.timeout(10):
        fatal, over = await read(program), await read(program)
        assert fatal["event"] == "fatal"
        assert str(fatal["message"]).startswith("vLLM's engine core has ended")
        assert over == {"event": "over", "finish_reason": "error"}
        assert await read(program) == {"event": "refused", "error": "EngineShutdown"}
    async with asyncio.timeout(30):
        assert await read(program) == {"event": "stopped"}


async def test_killing_the_worker_leaves_no_process_of_vllm(program: asyncio.subprocess.Process) -> None:
    assert (await read(program))["event"] == "streaming"
    family = children(program.pid)
    assert len(family) >= 2
    program.kill()
    await program.wait()
    async with asyncio.timeout(20):
        while any(alive(pid) for pid in family):  # noqa: ASYNC110  # they die by themselves
            await asyncio.sleep(0.05)


async def test_an_engine_core_that_fails_is_told_in_vllms_words(
    tiny_model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    context = EngineContext(
        model_path=str(tiny_model),
        model_name="tiny",
        worker_id=1,
        run_dir=str(tmp_path),
        args={"kv_cache_memory_bytes": 100_000},
    )
    engine = VllmEngine(None, context)
    with pytest.raises(StartupError, match=r"^vLLM did not start: To serve at least one request.*\nIts last lines:\n"):
        await engine.start()
    await engine.stop()
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        ({"max_modle_len": 5}, r"^vLLM has no engine argument 'max_modle_len'; did you mean max_model_len\?$"),
        ({"dtype": "float33"}, r"^vLLM does not accept its arguments: dtype: "),
        ({"max_model_len": 10**9}, r"^vLLM does not accept its arguments: .*max_model_len"),
    ],
)
async def test_arguments_that_vllm_refuses_are_one_sentence(
    tiny_model: Path, tmp_path: Path, args: dict[str, object], sentence: str
) -> None:
    context = EngineContext(model_path=str(tiny_model), model_name="t", worker_id=1, run_dir=str(tmp_path), args=args)
    engine = VllmEngine(None, context)
    with pytest.raises(StartupError, match=sentence) as caught:
        await engine.start()
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, ConfigError) == ("has no engine argument" in str(caught.value))
    await engine.stop()


async def test_stopping_while_it_starts_ends_the_start(tiny_model: Path, tmp_path: Path) -> None:
    context = EngineContext(model_path=str(tiny_model), model_name="t", worker_id=1, run_dir=str(tmp_path))
    engine, before = VllmEngine(None, context), set(multiprocessing.active_children())
    starting = asyncio.create_task(engine.start())
    while set(multiprocessing.active_children()) <= before and not starting.done():  # noqa: ASYNC110  # a thread starts them
        await asyncio.sleep(0.05)
    starting.cancel()
    await asyncio.gather(starting, return_exceptions=True)
    async with asyncio.timeout(20):
        await engine.stop()
    assert set(multiprocessing.active_children()) <= before
