"""What the serving tests share: a sink that writes down what it is told, workers on strings, and a router that can be asked."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping, Sequence
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from dynamo_core.contracts import Context, ModelCard, Route, RouteRequest, WorkerView
from dynamo_core.errors import DynamoError
from dynamo_core.plugins import Faults
from dynamo_core.serving.model_text import ModelText
from dynamo_core.serving.output import ChoiceOutput, GenerationRequest, Usage
from dynamo_core.serving.record import RequestRecord
from dynamo_core.serving.router_guard import RouterGuard
from dynamo_core.serving.served_model import ServedModel
from dynamo_core.serving.wire import decode_request


class RecordingSink:
    """Keeps every call in order and checks the sink's own rules."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.calls: list[tuple[Any, ...]] = []
        self.texts: dict[int, str] = {}
        self.outputs: dict[int, list[ChoiceOutput]] = {}
        self.flushes = 0
        self.usage: Usage | None = None
        self.error: DynamoError | None = None
        self.on_text: Callable[[], None] | None = None

    @property
    def ended(self) -> bool:
        return self.usage is not None or self.error is not None

    def _called(self) -> None:
        assert not self.ended
        assert not self.context.is_killed()

    def reasons(self) -> dict[int, Any]:
        return {index: outputs[-1].finish_reason for index, outputs in self.outputs.items()}

    def text(self, index: int, text: str) -> None:
        assert text
        self._called()
        self.calls.append(("text", index, text))
        self.texts[index] = self.texts.get(index, "") + text
        if self.on_text is not None:
            self.on_text()

    def output(self, index: int, output: ChoiceOutput) -> None:
        self._called()
        self.calls.append(("output", index, output))
        self.texts[index] = self.texts.get(index, "") + output.text
        self.outputs.setdefault(index, []).append(output)

    def flush(self) -> None:
        self._called()
        self.calls.append(("flush",))
        self.flushes += 1

    def completed(self, usage: Usage) -> None:
        self._called()
        self.usage = usage

    def failed(self, error: DynamoError) -> None:
        self._called()
        self.error = error


class PlayedStream:
    """One stream to a worker that the test plays."""

    def __init__(self, worker_id: int, request: dict[str, Any], context: Context, receiver: Any) -> None:
        self.worker_id = worker_id
        self.request = {**request, "token_ids": list(decode_request(request).token_ids)}
        self.context = context
        self.receiver = receiver
        self.cancelled: list[bool] = []
        self.paused = False
        self.over = False

    def cancel(self, *, kill: bool) -> None:
        self.cancelled.append(kill)
        self.over = self.over or kill

    def pause(self) -> None:
        self.paused = True

    def resume(self) -> None:
        self.paused = False

    def items(self, *items: Any) -> None:
        if not self.over and not self.context.is_killed():
            self.receiver.on_items(list(items))

    def end(self, *items: Any) -> None:
        if items:
            self.items(*items)
        if not self.over and not self.context.is_killed():
            self.over = True
            self.receiver.on_end()

    def fail(self, error: DynamoError) -> None:
        if not self.over and not self.context.is_killed():
            self.over = True
            self.receiver.on_error(error)


class PlayedWorkers:
    """A client whose streams are played by the test; ``refuse`` names workers whose connection fails on the spot."""

    def __init__(self) -> None:
        self.streams: list[PlayedStream] = []
        self.refuse: dict[int, DynamoError] = {}

    def open(self, instance_id: int, request: Any, context: Context, receiver: Any) -> PlayedStream:
        stream = PlayedStream(instance_id, request, context, receiver)
        self.streams.append(stream)
        if instance_id in self.refuse:
            stream.fail(self.refuse[instance_id])
        return stream


class AskedRouter:
    """Takes the lowest worker, or what ``decide`` says; remembers everything it is told."""

    def __init__(self) -> None:
        self.batches: list[list[RouteRequest]] = []
        self.told: list[tuple[Any, ...]] = []
        self.decide: Callable[[Sequence[RouteRequest], Mapping[int, WorkerView]], Any] | None = None

    def select(self, requests: Sequence[RouteRequest], workers: Mapping[int, WorkerView]) -> Any:
        self.batches.append(list(requests))
        if self.decide is not None:
            return self.decide(requests, workers)
        return [Route(min(workers)) for _ in requests]

    def first_token(self, request: RouteRequest, worker_id: int) -> None:
        self.told.append(("first_token", request.id, worker_id))

    def finished(self, request: RouteRequest, worker_id: int, outcome: str) -> None:
        self.told.append(("finished", request.id, worker_id, outcome))

    def worker_added(self, worker: WorkerView) -> None:
        self.told.append(("worker_added", worker.id))

    def worker_removed(self, worker_id: int) -> None:
        self.told.append(("worker_removed", worker_id))

    def outcomes(self) -> list[str]:
        return [entry[3] for entry in self.told if entry[0] == "finished"]


class Letters:
    """A tokenizer whose tokens are characters; ids from 1000 are the bytes of a character that comes in pieces."""

    vocab_size = 2000
    frame = ((), ())

    def pack(self, text: str, add_special_tokens: bool = True) -> array[int]:
        return array("I", [ord(letter) for letter in text])

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        detokenizer = self.detokenizer(skip_special_tokens, ())
        return "".join(map(detokenizer.push, ids)) + detokenizer.finish()

    def token_text(self, id: int) -> str:
        return chr(id) if id < 1000 else "�"

    def token_bytes(self, id: int) -> bytes:
        return chr(id).encode() if id < 1000 else bytes([id - 1000])

    def detokenizer(self, skip_special_tokens: bool, prompt_ids: Sequence[int]) -> LetterDetokenizer:
        return LetterDetokenizer()


class LetterDetokenizer:
    def __init__(self) -> None:
        self._open = b""

    def push(self, token_id: int) -> str:
        if token_id >= 2000:
            raise IndexError(token_id)
        self._open += chr(token_id).encode() if token_id < 1000 else bytes([token_id - 1000])
        try:
            text = self._open.decode()
        except UnicodeDecodeError:
            return ""
        self._open = b""
        return text

    def finish(self) -> str:
        text, self._open = self._open.decode(errors="replace"), b""
        return text


class QuietEvents:
    """An event plane whose topics the test plays."""

    def __init__(self) -> None:
        self.subscriptions: dict[tuple[str, str], tuple[Callable[[bytes], None], Any]] = {}

    def subscribe(self, address: str, topic: str, callback: Callable[[bytes], None], on_lost: Any = None) -> Any:
        self.subscriptions[address, topic] = (callback, on_lost)
        plane = self

        class Subscription:
            def close(self) -> None:
                plane.subscriptions.pop((address, topic), None)

        return Subscription()


class Stage:
    """One served model on played workers."""

    def __init__(
        self,
        workers: Sequence[int] = (1, 2),
        *,
        migration_limit: int = 3,
        context_length: int = 0,
        open_filter: Any = None,
        **options: Any,
    ) -> None:
        self.router = AskedRouter()
        self.workers = PlayedWorkers()
        self.events = QuietEvents()
        self.faults = Faults()
        self.card = ModelCard(name="letters", path="", block_size=4, kv_events=True, context_length=context_length)
        self.model = ServedModel(
            self.card,
            ModelText(Letters(), None, (3,)),  # type: ignore[arg-type]
            RouterGuard(self.router, "letters", "asked", self.faults),
            self.events,  # type: ignore[arg-type]
            migration_limit=migration_limit,
            open_filter=open_filter,
            **options,
        )
        for worker in workers:
            self.model.add_worker(worker, self.card, self.workers, f"events-{worker}")

    def generate(self, prompt: str = "abc", **options: Any) -> Asked:
        prompts = options.pop("prompts", (self.model.encode(prompt),))
        context = options.pop("context", None) or Context()
        return Asked(self.model, GenerationRequest(id="r", endpoint="completions", prompts=prompts, **options), context)

    @staticmethod
    def route(worker_id: int) -> Route:
        return Route(worker_id)

    @property
    def streams(self) -> list[PlayedStream]:
        return self.workers.streams

    def idle(self) -> bool:
        return all(not view.inflight and not view.inflight_tokens for view in self.model.workers.values())


class Asked:
    """A generation and what became of it."""

    def __init__(self, model: ServedModel, request: GenerationRequest, context: Context) -> None:
        self.sink = RecordingSink(context)
        self.record = RequestRecord("r", "completions")
        self.context = context
        self.generation = model.generate(request, self.sink, self.record, context)


@pytest.fixture
def stage() -> type[Stage]:
    return Stage


@pytest.fixture
def recording_sink() -> type[RecordingSink]:
    return RecordingSink


@pytest.fixture(scope="session")
def scripted() -> ModuleType:
    """The module of the scripted engine; also the program of a worker process."""
    path = Path(__file__).with_name("scripted_worker.py")
    found = spec_from_file_location("scripted_worker", path)
    assert found is not None
    assert found.loader is not None
    module = module_from_spec(found)
    found.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level tokenizer of 300 tokens and a chat template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["</s>"], initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(["the cat sat on the mat and the dog ate the hat"] * 4, trainer)
    folder = tmp_path_factory.mktemp("model") / "tiny"
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text('{"max_position_embeddings": 128, "eos_token_id": 0}')
    (folder / "chat_template.jinja").write_text("{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}")
    return folder
