"""Real worker processes, real sockets, real signals: what a client sees when one of them goes."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from dynamo_core.config import Settings
from dynamo_core.contracts import Context, EngineRequest, Route, StopConditions
from dynamo_core.errors import Disconnected, NoInstances
from dynamo_core.plugins import Provider, activate
from dynamo_core.runtime import DistributedRuntime
from dynamo_core.serving import sequence
from dynamo_core.serving.manager import ModelManager
from dynamo_core.serving.migration import resumed
from dynamo_core.serving.output import GenerationRequest
from dynamo_core.serving.record import RequestRecord
from dynamo_core.specs import RouterSpec

STREAMS = 24
TOKENS = 400
STEP = 0.002


class InTurn:
    def __init__(self, config: Any, context: Any) -> None:
        self.next = 0
        self.outcomes: list[str] = []
        self.routes = 0

    def select(self, requests: Any, workers: Any) -> Any:
        ids = sorted(workers)
        self.routes += len(requests)
        decisions = [Route(ids[(self.next + place) % len(ids)]) for place, _ in enumerate(requests)]
        self.next += len(requests)
        return decisions

    def finished(self, request: Any, worker_id: int, outcome: str) -> None:
        self.outcomes.append(outcome)


class Fleet:
    def __init__(self, manager: ModelManager, processes: dict[int, Process]) -> None:
        self.manager = manager
        self.processes = processes
        """By pid."""

    async def model(self, workers: int) -> Any:
        await until(lambda: any(len(model.workers) == workers for model in self.manager.models()))
        return self.manager.get("scripted")

    def process_of(self, model: Any, worker_id: int) -> Process:
        client = next(iter(client for path, client in self.manager._clients.items() if path.endswith(".generate")))
        pid = next(instance.pid for instance in client.instances() if instance.instance_id == worker_id)
        return self.processes[pid]


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110  # many conditions, none with an event of its own
            await asyncio.sleep(0.005)


@pytest.fixture
async def fleet(scripted: Any, model_folder: Path, tmp_path: Path) -> AsyncIterator[Fleet]:
    async with contextlib.AsyncExitStack() as stack:
        file_kv = str(tmp_path / "kv")
        processes: dict[int, Process] = {}
        stack.push_async_callback(end_all, processes)
        for number in range(2):
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                scripted.__file__,
                str(model_folder),
                file_kv,
                str(tmp_path / f"w{number}"),
                str(STEP),
                stdout=PIPE,
            )
            processes[process.pid] = process
        for process in processes.values():
            assert process.stdout is not None
            assert await process.stdout.readline() == b"ready\n"
        runtime = DistributedRuntime(None, "file", "tcp", event_plane="zmq", run_dir=str(tmp_path / "f"), file_kv=file_kv)
        stack.push_async_callback(runtime.shutdown)
        await runtime.start()
        provider = Provider(RouterSpec(name="in-turn", factory=InTurn), "in-turn")
        manager = ModelManager(runtime, activate(()), provider, Settings())
        stack.push_async_callback(manager.stop)
        await manager.start()
        yield Fleet(manager, processes)


async def end_all(processes: dict[int, Process]) -> None:
    for process in processes.values():
        if process.returncode is None:
            process.kill()
        await process.communicate()


def ask(model: Any, sink_type: Any, number: int) -> Any:
    context = Context()
    sink, record = sink_type(context), RequestRecord(f"r{number}", "completions")
    prompt = [number, 1, 2, number]
    request = GenerationRequest(
        id=f"r{number}", endpoint="completions", prompts=(prompt,), conditions=StopConditions(max_tokens=TOKENS)
    )
    model.generate(request, sink, record, context)
    return sink, record, prompt


def inexact(asked: Any, model: Any, scripted: Any) -> list[str]:
    """Ids of the streams that are not, token for token, what one undisturbed worker gives, usage included."""
    wrong = []
    for sink, record, prompt in asked:
        text = model.tokenizer.decode(scripted.expected(prompt, TOKENS))
        usage = sink.usage and (sink.usage.prompt_tokens, sink.usage.output_tokens, sink.usage.cached_tokens)
        if sink.error is not None or sink.texts[0] != text or usage != (4, TOKENS, 2):
            wrong.append(record.id)
    return wrong


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
async def test_streams_go_on_token_by_token_when_a_worker_goes(
    fleet: Fleet, scripted: Any, recording_sink: Any, how: signal.Signals
) -> None:
    model = await fleet.model(workers=2)
    asked = [ask(model, recording_sink, number) for number in range(STREAMS)]
    await until(lambda: all(len(sink.calls) > 20 for sink, _, _ in asked))
    lost = min(model.workers)
    views = dict(model.workers)
    assert views[lost].inflight == STREAMS // 2
    process = fleet.process_of(model, lost)
    process.send_signal(how)
    await until(lambda: all(sink.ended for sink, _, _ in asked))
    assert not inexact(asked, model, scripted)
    for _, record, _ in asked:
        assert record.output_tokens == TOKENS
        assert len(record.worker_ids) == (2 if record.worker_ids[0] == lost else 1)
    assert model.counters.migrated == STREAMS // 2
    router = model.router.router
    assert len(router.outcomes) == router.routes == STREAMS * 3 // 2
    assert router.outcomes.count("migrated") == STREAMS // 2
    assert all(not view.inflight and not view.inflight_tokens for view in views.values())
    assert lost not in model.workers
    assert await process.wait() == (0 if how == signal.SIGTERM else -how)


def _drops_a_token(request: EngineRequest, generated: Sequence[int]) -> EngineRequest:
    return msgspec.structs.replace(resumed(request, generated), token_ids=[*request.token_ids, *generated[:-1]])


def _repeats_a_token(request: EngineRequest, generated: Sequence[int]) -> EngineRequest:
    return msgspec.structs.replace(resumed(request, generated), token_ids=[*request.token_ids, *generated, generated[-1]])


def _forgets_what_was_generated(request: EngineRequest, generated: Sequence[int]) -> EngineRequest:
    return request


def _allows_a_token_less(request: EngineRequest, generated: Sequence[int]) -> EngineRequest:
    after = resumed(request, generated)
    return msgspec.structs.replace(after, stop=msgspec.structs.replace(after.stop, max_tokens=after.stop.max_tokens - 1))


@pytest.mark.parametrize("mutant", [_drops_a_token, _repeats_a_token, _forgets_what_was_generated, _allows_a_token_less])
async def test_a_migration_that_loses_or_repeats_a_token_would_be_noticed(
    fleet: Fleet, scripted: Any, recording_sink: Any, monkeypatch: pytest.MonkeyPatch, mutant: Any
) -> None:
    """The comparison of the tests above is worth something: with a broken migration it fails, for exactly what was migrated."""
    monkeypatch.setattr(sequence, "resumed", mutant)
    model = await fleet.model(workers=2)
    asked = [ask(model, recording_sink, number) for number in range(STREAMS)]
    await until(lambda: all(len(sink.calls) > 20 for sink, _, _ in asked))
    lost = min(model.workers)
    fleet.process_of(model, lost).kill()
    await until(lambda: all(sink.ended for sink, _, _ in asked))
    moved = [record.id for _, record, _ in asked if len(record.worker_ids) > 1]
    assert len(moved) >= STREAMS // 4, "on a busy machine some are over before the signal arrives"
    assert inexact(asked, model, scripted) == moved


async def test_with_no_worker_left_the_error_is_typed_and_later_requests_are_refused(fleet: Fleet, recording_sink: Any) -> None:
    model = await fleet.model(workers=2)
    sink, record, _ = ask(model, recording_sink, 1)
    await until(lambda: len(sink.calls) > 20)
    for process in fleet.processes.values():
        process.kill()
    await until(lambda: sink.ended)
    assert isinstance(sink.error, Disconnected)
    assert record.output_tokens > 10
    await until(lambda: not model.workers)
    late, _, _ = ask(model, recording_sink, 2)
    await until(lambda: late.ended)
    assert isinstance(late.error, NoInstances)
