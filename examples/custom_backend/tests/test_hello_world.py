from __future__ import annotations

import asyncio
import importlib.util
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from dynamo_core.contracts import Context
from dynamo_core.testing import InprocCluster
from dynamo_core.testing.tiny_model import make_tiny_model

FOLDER = Path(__file__).parents[1] / "hello_world"


def program(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"custom_backend_{name}", FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def _no_delay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DYN_TEST_HELLO_WORLD_WORD_DELAY_SEC", "0")


async def test_the_handler_greets_every_word() -> None:
    assert [item async for item in program("hello_world").greet("world,sun,moon")] == [
        "Hello world!",
        "Hello sun!",
        "Hello moon!",
    ]


async def test_the_client_prints_what_the_server_says(capsys: pytest.CaptureFixture[str]) -> None:
    async with InprocCluster() as cluster:
        server = await cluster.runtime()
        serving = asyncio.create_task(server.endpoint("h.backend.generate").serve_endpoint(program("hello_world").greet))
        client = await (await cluster.runtime()).endpoint("h.backend.generate").client()
        await client.wait_for_instances(10)
        await program("client").greetings(client)
        assert capsys.readouterr().out.split("\n")[:4] == ["Hello world!", "Hello sun!", "Hello moon!", "Hello star!"]
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)


async def test_pauses_after_failures_double_up_to_five_seconds_and_begin_anew() -> None:
    slept: list[float] = []
    outcomes = iter([False] * 8 + [True, False])

    async def ask() -> None:
        if not next(outcomes):
            raise RuntimeError("nobody there")

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    await program("client").repeat(ask, rounds=10, sleep=sleep)
    assert slept == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0, 1.0, 0.1]


async def test_the_engine_greets_in_tokens_and_stops_when_asked(tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path / "m", weights=False)
    engine = program("hello_world").HelloEngine(str(folder))
    encode, decode = engine._tokenizer.encode, engine._tokenizer.decode

    async def said(context: Context, limit: int = 100) -> list[dict[str, Any]]:
        request = {"token_ids": encode("sun moon", add_special_tokens=False).ids, "stop_conditions": {"max_tokens": limit}}
        return [chunk async for chunk in engine.generate(request, context)]

    chunks = await said(Context())
    assert decode([token for chunk in chunks for token in chunk.get("token_ids", ())]) == "Hello sun! Hello moon!"
    assert chunks[-1] == {"finish_reason": "stop"}
    chunks = await said(Context(), limit=2)
    assert [len(chunk.get("token_ids", ())) for chunk in chunks] == [2, 0]
    assert chunks[-1] == {"finish_reason": "length"}
    context = Context()
    context.stop_generating()
    assert await said(context) == [{"finish_reason": "cancelled"}]


async def lines(process: asyncio.subprocess.Process) -> AsyncIterator[str]:
    assert process.stdout is not None
    while line := await process.stdout.readline():
        yield line.decode().strip()


async def test_the_client_survives_a_restart_of_the_server(tmp_path: Path) -> None:
    environment = {**os.environ, "DYN_FILE_KV": str(tmp_path / "kv"), "DYN_LOG": "error"}

    async def start(name: str) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            sys.executable, str(FOLDER / f"{name}.py"), env=environment, cwd=tmp_path, stdout=subprocess.PIPE
        )

    server, client = await start("hello_world"), await start("client")
    told = lines(client)
    try:
        async with asyncio.timeout(60):
            assert await anext(told) == "Hello world!"
            server.kill()
            await server.wait()
            while not (await anext(told)).startswith("Trying again"):
                pass
            server = await start("hello_world")
            while await anext(told) != "Hello star!":
                pass
    finally:
        for process in (server, client):
            process.terminate()
            await process.wait()
    assert (server.returncode, client.returncode) == (0, 0)
