from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from dynamo_core.contracts import Context
from dynamo_core.errors import ConfigError
from dynamo_core.runtime import DistributedRuntime, dynamo_endpoint, dynamo_worker


async def test_a_worker_gets_a_runtime_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DYN_FILE_KV", str(tmp_path / "kv"))
    monkeypatch.setenv("DYN_DISCOVERY_BACKEND", "file")
    monkeypatch.setenv("DYN_REQUEST_PLANE", "inproc")
    monkeypatch.setenv("DYN_EVENT_PLANE", "inproc")

    @dynamo_worker()
    async def worker(runtime: DistributedRuntime, answer: int) -> int:
        assert runtime.request_plane_name == "inproc"
        assert (tmp_path / "kv").is_dir()
        return answer

    assert await worker(42) == 42
    assert list((tmp_path / "kv").iterdir()) == []


class Word:
    """Has pydantic's methods, which is all that counts."""

    def __init__(self, text: str) -> None:
        self.text = text

    @classmethod
    def model_validate_json(cls, text: str) -> Word:
        return cls(f"json {text}")

    @classmethod
    def model_validate(cls, fields: dict[str, Any]) -> Word:
        if "text" not in fields:
            raise ValueError("text is missing")
        return cls(fields["text"])


@dynamo_endpoint(Word, str)
async def greet(request: Word, context: Context | None = None) -> AsyncIterator[str]:
    yield f"Hello {request.text}!"


@pytest.mark.parametrize(
    ("request_", "text"), [({"text": "sun"}, "Hello sun!"), ("{}", "Hello json {}!"), (Word("moon"), "Hello moon!")]
)
@pytest.mark.parametrize("rest", [(), (Context(),)])
async def test_requests_are_parsed_where_the_type_can(request_: Any, text: str, rest: tuple[Any, ...]) -> None:
    assert [item async for item in greet(request_, *rest)] == [text]


async def test_methods_are_endpoints_too() -> None:
    class Backend:
        @dynamo_endpoint(Word, str)
        async def generate(self, request: Word) -> AsyncIterator[str]:
            yield request.text

    assert [item async for item in Backend().generate({"text": "x"})] == ["x"]


async def test_what_does_not_fit_is_a_value_error_at_the_first_item() -> None:
    stream = greet({})
    with pytest.raises(ValueError, match="text is missing"):
        await anext(stream)


async def test_other_types_pass_through() -> None:
    @dynamo_endpoint(str, str)
    async def echo(request: Any) -> AsyncIterator[Any]:
        yield request

    assert [item async for item in echo({"a": 1})] == [{"a": 1}]


async def test_thread_settings_of_the_environment_are_taken_or_said_to_be_ignored(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("DYN_FILE_KV", str(tmp_path / "kv"))
    monkeypatch.setenv("DYN_RUNTIME_MAX_BLOCKING_THREADS", "3")
    monkeypatch.setenv("DYN_RUNTIME_NUM_WORKER_THREADS", "4")
    monkeypatch.chdir(tmp_path)
    busy: list[int] = []
    together: list[int] = []

    def block(request: int) -> int:
        busy.append(request)
        together.append(len(busy))
        time.sleep(0.05)
        busy.remove(request)
        return request

    @dynamo_worker()
    async def work(runtime: Any) -> list[Any]:
        serving = asyncio.create_task(runtime.endpoint("n.c.e").serve_endpoint(block))
        client = await runtime.endpoint("n.c.e").client()
        await client.wait_for_instances(10)
        streams = [client.generate(number, annotated=False) for number in range(9)]
        answers = await asyncio.gather(*(anext(stream) for stream in streams))
        await runtime.shutdown()
        await serving
        return answers

    assert await work() == list(range(9))
    assert max(together) == 3
    assert "DYN_RUNTIME_NUM_WORKER_THREADS=4 has no effect" in caplog.text


async def test_the_files_tables_configure_store_and_planes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DYN_FILE_KV", str(tmp_path / "kv"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dynamo.toml").write_text("[plugins.tcp]\nhost = '127.0.0.1'\n[plugins.mocker]\n")

    @dynamo_worker()
    async def work(runtime: Any) -> str:
        served = await runtime.endpoint("n.c.e").serve(lambda request, context, sink: sink.end())
        address: str = served.instance.address
        return address

    assert (await work()).startswith("tcp:127.0.0.1:")
    (tmp_path / "dynamo.toml").write_text("[plugins.tcp]\nhots = '127.0.0.1'\n")
    with pytest.raises(ConfigError, match="hots"):
        await work()
