"""A real supervisor in a process of its own, with scripted children."""

import asyncio
import json
import os
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "tiny"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}}))
    return folder


@pytest.fixture
def base() -> Iterator[Path]:
    """A folder with a short path, as Unix sockets want it."""
    with tempfile.TemporaryDirectory(prefix="dyn", dir="/tmp") as path:
        yield Path(path)


class Run:
    """One supervisor; ``script`` tells its children what to do."""

    def __init__(self, base: Path, model: Path) -> None:
        self.base = base
        self.script = base / "script"
        self.script.mkdir()
        self.run_dir = base / "run"
        self.model = model
        self.process: asyncio.subprocess.Process
        self.lines: list[str] = []
        self._seen = asyncio.Event()
        self._reading: list[asyncio.Task[None]] = []

    @property
    def environ(self) -> dict[str, str]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("DYN_")}
        return clean | {"SCRIPT": str(self.script), "DYN_RUN_DIR": str(self.run_dir), "PYTHONUNBUFFERED": "1"}

    def behave(self, name: str, *lives: dict[str, object]) -> None:
        (self.script / f"{name}.json").write_text(json.dumps(lives))

    async def start(self, *flags: str) -> None:
        self.process = await asyncio.create_subprocess_exec(
            sys.executable,
            str(HERE / "scripted_serve.py"),
            *("--engine", "echo", "--model", str(self.model), "--http-port", "0"),
            *flags,
            env=self.environ,
            cwd=self.base,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        for stream, tag in ((self.process.stdout, ""), (self.process.stderr, "! ")):
            self._reading.append(asyncio.create_task(self._read(stream, tag)))

    async def _read(self, stream: asyncio.StreamReader, tag: str) -> None:
        while line := await stream.readline():
            self.lines.append(tag + line.decode().rstrip("\n"))
            self._seen.set()

    async def line(self, has: str) -> str:
        async with asyncio.timeout(30):
            while True:
                for line in self.lines:
                    if has in line:
                        return line
                if self.process.returncode is not None and all(task.done() for task in self._reading):
                    raise AssertionError(f"{has!r} not in {self.lines}")
                self._seen.clear()
                await asyncio.wait(
                    [asyncio.create_task(self._seen.wait()), *(t for t in self._reading if not t.done())],
                    return_when=asyncio.FIRST_COMPLETED,
                )

    async def ready(self) -> str:
        return await self.line("ready: http")

    async def over(self) -> int:
        async with asyncio.timeout(30):
            await asyncio.gather(*self._reading)
            return await self.process.wait()

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(30):
            while not condition():  # noqa: ASYNC110
                await asyncio.sleep(0.02)  # what other processes do has no event

    @property
    def errors(self) -> list[str]:
        return [line[2:] for line in self.lines if line.startswith("! ")]

    def pids(self, name: str) -> list[int]:
        path = self.script / f"{name}.lives"
        return [int(pid) for pid in path.read_text().split()] if path.exists() else []


@pytest.fixture
async def run(base: Path, model_folder: Path) -> AsyncIterator[Run]:
    run = Run(base, model_folder)
    yield run
    if run.process.returncode is None:
        run.process.kill()
    await run.over()


@pytest.fixture
def is_alive() -> Callable[[int], bool]:
    def check(pid: int) -> bool:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return False
        return state != "Z"

    return check
