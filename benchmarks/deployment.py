"""A `dynamo serve` of mocker workers as a subprocess, for the programs that load it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import platform
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from dynamo_core.supervisor.admin import ask_admin
from dynamo_core.testing.servers import free_port

__all__ = ["Deployment", "deployed", "end", "introduce"]

DYNAMO = str(Path(sys.executable).with_name("dynamo"))
_ACCESS = re.compile(r" worker=([0-9a-f,]+) .*request=(\S+)")


def introduce() -> None:
    """What every result is worth nothing without."""
    print("command:", " ".join(["python -m", f"benchmarks.{Path(sys.argv[0]).stem}", *sys.argv[1:]]))
    print(f"machine: {platform.platform()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    versions = (f"{name} {version(name)}" for name in ("dynamo-core", "uvicorn", "litestar", "uvloop", "msgspec"))
    print("versions: Python", platform.python_version(), *versions, flush=True)


class Deployment:
    """Runs until :meth:`stop`. ``model_name`` is ``bench``."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, folder: Path) -> None:
        self.process = process
        self.port = port
        self._folder = folder
        self._admin = ""

    def get(self, path: str) -> tuple[int, bytes]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=10) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read()

    def series(self, name: str) -> float:
        """Of a metric of the frontends: the sum of its samples."""
        lines = self.get("/metrics")[1].decode().splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if re.match(rf"{name}[ {{]", line))

    async def status(self) -> dict[str, Any]:
        return await ask_admin(self._socket(), "status")

    async def tasks(self) -> dict[str, int]:
        """How many each process has, by name."""
        found: dict[str, int] = {}
        for kind in ("frontend", "worker"):
            told = await ask_admin(self._socket(), "fan_out", {"name": "vitals", "kind": kind})
            found |= {name: answer["tasks"] for name, answer in told["answers"].items()}
        return found

    def _socket(self) -> str:
        if not self._admin:
            (socket,) = self._folder.glob("dynamo/serve-*/admin.sock")
            self._admin = str(socket)
        return self._admin

    async def pids(self, kind: str) -> dict[str, int]:
        """Of the processes that are ready, by name."""
        processes = (await self.status())["processes"]
        return {one["name"]: one["pid"] for one in processes if one["kind"] == kind and one["state"] == "ready"}

    async def whole(self, workers: int, within: float = 90) -> dict[str, int]:
        """Wait until ``workers`` workers are up and routable; their pids by name."""
        deadline = time.monotonic() + within
        while True:
            status = await self.status()
            pids = {p["name"]: p["pid"] for p in status["processes"] if p["kind"] == "worker" and p["state"] == "ready"}
            known = {worker["pid"] for worker in status["workers"] if worker["model"]}
            if len(pids) == workers and set(pids.values()) <= known and await asyncio.to_thread(self._routable) == workers:
                return pids
            if time.monotonic() > deadline:
                raise TimeoutError(f"{len(pids)} of {workers} workers are back after {within:g} s:\n{self.log()[-3000:]}")
            await asyncio.sleep(0.25)

    def log(self) -> str:
        return (self._folder / "log").read_text(errors="replace")

    def routes(self) -> dict[str, list[str]]:
        """Request id → the workers that it was on, from the access log."""
        return {found[2]: found[1].split(",") for found in _ACCESS.finditer(self.log())}

    def stop(self, within: float = 60) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(within)

    def _routable(self) -> int:
        models = json.loads(self.get("/health")[1])["models"]
        return len(models["bench"]["instances"]) if "bench" in models else 0


@contextlib.contextmanager
def deployed(model: Path, folder: Path, *arguments: str, env: dict[str, str] | None = None) -> Iterator[Deployment]:
    """``arguments`` follow `dynamo serve --engine mocker --model MODEL`; it is ready when this is entered."""
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    command = [DYNAMO, "serve", "--engine", "mocker", "--model", str(model), "--model-name", "bench", "--http-port", str(port)]
    environment = {**os.environ, "XDG_RUNTIME_DIR": str(folder), "NO_COLOR": "1", **(env or {})}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([*command, *arguments], env=environment, stdout=log, stderr=log, cwd=folder)
    deployment = Deployment(process, port, folder)
    try:
        _until(lambda: "\nready: http" in deployment.log(), process, deployment)
        yield deployment
    finally:
        end(process)


def end(process: subprocess.Popen[bytes]) -> None:
    """By SIGTERM, and after a minute by SIGKILL."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _until(condition: Callable[[], bool], process: subprocess.Popen[bytes], deployment: Deployment) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        if process.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(f"dynamo serve did not come up:\n{deployment.log()[-3000:]}")
        time.sleep(0.1)
