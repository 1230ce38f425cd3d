"""A vLLM that does not start, and one whose engine core dies."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from dynamo_core.contracts import EngineContext
from dynamo_core.errors import ConfigError, StartupError
from dynamo_vllm.engine import VllmEngine

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(300), pytest.mark.filterwarnings("ignore")]

# In a process of its own, as a worker is: vLLM's metrics are the process's, the other tests' engine keeps its own in this one,
# and what a failed start leaves of vLLM cannot always be collected (a ZMQ context waits for ever).
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

async def stream(engine):
    sink = Sink()
    greedy, stop = SamplingParams(temperature=0.0), StopConditions(max_tokens=4000, ignore_eos=True)
    engine.submit(EngineRequest(id="r", token_ids=[20] * 40, sampling=greedy, stop=stop), sink, Context())
    await sink.over.wait()
    try:
        engine.submit(EngineRequest(id="s", token_ids=[20]), sink, Context())
    except Exception as error:
        say(event="refused", error=type(error).__name__)
    await engine.drain()

async def main():
    model, args, interrupt = sys.argv[1], json.loads(sys.argv[2]), len(sys.argv) > 3
    context = EngineContext(
        model_path=model, model_name="tiny", worker_id=1, run_dir=tempfile.mkdtemp(), args=args,
        on_fatal=lambda message: say(event="fatal", message=message),
    )
    engine = VllmEngine(None, context)
    starting = asyncio.create_task(engine.start())
    try:
        while interrupt and not multiprocessing.active_children():
            await asyncio.sleep(0.05)
        if interrupt:
            starting.cancel()
        await starting
        await stream(engine)
    except Exception as error:
        say(event="failed", error=type(error).__name__, message=str(error))
    except asyncio.CancelledError:
        say(event="interrupted")
    await engine.stop()
    say(event="stopped", left=[child.pid for child in multiprocessing.active_children()])

if __name__ == "__main__":
    asyncio.run(main())
"""


class Program:
    """The program above, line by line."""

    def __init__(self, folder: Path, model: Path) -> None:
        self._script, self._model = folder / "program.py", model
        self._script.write_text(PROGRAM)
        self._stderr = (folder / "stderr").open("wb+")
        self._process: asyncio.subprocess.Process | None = None

    async def start(self, *more: str, **args: object) -> asyncio.subprocess.Process:
        # The other tests' engine, if it runs, has set variables in this process.
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("VLLM_", "DYN_VLLM_"))}
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            self._script,
            self._model,
            msgspec.json.encode({"dtype": "float32", **args}),  # vLLM's bfloat16 is not for every processor
            *more,
            stdout=asyncio.subprocess.PIPE,
            stderr=self._stderr,
            env=environment,
        )
        return self._process

    async def line(self) -> dict[str, Any]:
        assert self._process is not None
        assert self._process.stdout is not None
        return msgspec.json.decode(await self._process.stdout.readline(), type=dict[str, Any])

    def stderr(self) -> str:
        self._stderr.seek(0)
        return self._stderr.read().decode()

    async def close(self) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()
        self._stderr.close()


@pytest.fixture
async def program(tiny_model: Path, tmp_path: Path) -> AsyncIterator[Program]:
    program = Program(tmp_path, tiny_model)
    yield program
    await program.close()


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


@pytest.mark.slow
async def test_a_dead_engine_core_is_fatal_at_once_and_ends_its_streams(program: Program) -> None:
    process = await program.start(max_model_len=4096)
    (core,) = (await program.line())["core"]
    os.kill(core, signal.SIGKILL)
    async with asyncio.timeout(10):
        fatal = await program.line()
        assert fatal["event"] == "fatal"
        assert fatal["message"].startswith("vLLM's engine core has ended")
        assert await program.line() == {"event": "over", "finish_reason": "error"}
        assert await program.line() == {"event": "refused", "error": "EngineShutdown"}
    async with asyncio.timeout(30):
        assert await program.line() == {"event": "stopped", "left": []}
        await process.wait()
    assert "AsyncLLM.__del__" not in program.stderr(), "something kept vLLM's engine to the interpreter's end"


@pytest.mark.slow
async def test_a_process_that_a_signal_ended_is_told_by_name(program: Program) -> None:
    process = await program.start(max_model_len=4096)
    assert (await program.line())["event"] == "streaming"
    (computing,) = [pid for pid in children(process.pid) if "VLLM::Worker" in Path(f"/proc/{pid}/comm").read_text()]
    os.kill(computing, signal.SIGILL)
    fatal = await program.line()
    while fatal["event"] != "fatal":  # vLLM ends the stream first
        fatal = await program.line()
    # vLLM looks at once, and now and then before the system knows the exit code; then nobody else can tell.
    ended = r"was ended by SIGILL; with --engine-arg dtype|has ended, and vLLM did not see how"
    assert re.match(rf"vLLM's engine core has ended: its process \S+ (?:{ended})", fatal["message"])


@pytest.mark.slow
async def test_killing_the_worker_leaves_no_process_of_vllm(program: Program) -> None:
    process = await program.start(max_model_len=4096)
    assert (await program.line())["event"] == "streaming"
    family = children(process.pid)
    assert len(family) >= 2
    process.kill()
    await process.wait()
    async with asyncio.timeout(20):
        while any(alive(pid) for pid in family):  # noqa: ASYNC110  # they die by themselves
            await asyncio.sleep(0.05)


@pytest.mark.slow
async def test_an_engine_core_that_fails_is_told_in_vllms_words(program: Program) -> None:
    process = await program.start(kv_cache_memory_bytes=100_000)
    failed = await program.line()
    assert (failed["event"], failed["error"]) == ("failed", "StartupError")
    assert re.match(r"vLLM did not start: To serve at least one request.*\nIts last lines:\n", failed["message"])
    async with asyncio.timeout(30):
        assert await program.line() == {"event": "stopped", "left": []}
        assert await process.wait() == 0
    assert "Traceback" not in program.stderr()


@pytest.mark.slow
async def test_stopping_while_it_starts_ends_the_start(program: Program) -> None:
    await program.start("interrupt")
    assert await program.line() == {"event": "interrupted"}
    async with asyncio.timeout(20):
        assert await program.line() == {"event": "stopped", "left": []}


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


async def test_vllm_plans_its_batches_as_for_its_own_server(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not told what for, it takes an eighth of the sequences and a quarter of the tokens on a large GPU."""
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.usage.usage_lib import UsageContext

    asked: list[object] = []

    def plan(_self: AsyncEngineArgs, context: object = None) -> None:
        asked.append(context)
        raise ValueError("enough")

    monkeypatch.setattr(AsyncEngineArgs, "create_engine_config", plan)
    engine = VllmEngine(None, EngineContext(model_path=str(tiny_model), model_name="t", worker_id=1, run_dir=str(tmp_path)))
    with pytest.raises(StartupError, match="enough"):
        await engine.start()
    await engine.stop()
    assert asked == [UsageContext.OPENAI_API_SERVER]
