"""The serving pipeline as something that can be asked without HTTP."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Mapping, Sequence
from time import monotonic
from typing import Any

import msgspec

from dynamo_core.contracts import Context
from dynamo_core.errors import DynamoError, InvalidRequest, StartupError
from dynamo_core.http.openai.sampling import conditions_of, sampling_of, stops_of
from dynamo_core.http.openai.types import ChatCompletionRequest, CompletionRequest, SamplingFields
from dynamo_core.launcher.answer import Answer, OnText
from dynamo_core.serving.manager import ModelManager
from dynamo_core.serving.output import ChoiceOutput, GenerationRequest, Usage
from dynamo_core.serving.record import RequestRecord
from dynamo_core.serving.served_model import ServedModel

__all__ = ["Pipeline"]

_LOOK_EVERY = 0.05


class Pipeline:
    """Requests as OpenAI's API has them, answered by the models of one manager. Belongs to the manager's event loop."""

    def __init__(self, manager: ModelManager, defaults: Mapping[str, Any]) -> None:
        """``defaults``: for fields that a request leaves out."""
        self._manager = manager
        self._defaults = dict(defaults)

    def names(self) -> list[str]:
        return [model.name for model in self._manager.models()]

    async def ready(self, name: str | None, within: float) -> str:
        """Wait for a model that has a worker: ``name``, or the first. Raises :class:`StartupError`."""
        try:
            async with asyncio.timeout(within):
                while True:
                    for model in self._manager.models():
                        if model.ready and name in (None, model.name, *model.card.aliases):
                            return model.name
                    for broken, why in self._manager.broken.items():
                        if name in (None, broken):
                            raise StartupError(f"model {broken} cannot be served: {why}")
                    await asyncio.sleep(_LOOK_EVERY)
        except TimeoutError:
            what = f"the model {name!r}" if name else "a model"
            raise StartupError(f"No worker serves {what} within {within:g} s: start one, or name its --namespace.") from None

    async def ask(self, fields: Mapping[str, Any], on_text: OnText = lambda _text: None) -> Answer:
        """``messages`` or ``prompt`` (text), and any other field of a request.

        A prompt is a user's message where the model has a chat template, and text to be continued where it has none. Raises
        :class:`DynamoError`. Cancelling the task cancels the request.
        """
        merged = {**self._defaults, **fields}
        body, served, prompt = self._prepare(merged)
        wanted = getattr(body, "max_completion_tokens", None) or body.max_tokens
        request = GenerationRequest(
            id=f"run-{secrets.token_hex(8)}",
            endpoint="chat" if isinstance(body, ChatCompletionRequest) else "completions",
            prompts=(prompt,),
            sampling=sampling_of(body),
            conditions=conditions_of(body, served.limit(len(prompt), wanted)),
            stop=stops_of(body),
            include_stop=bool(body.include_stop_str_in_output),
            skip_special_tokens=body.skip_special_tokens is not False,
            priority=body.priority or 0,
            cache_salt=body.cache_salt,
        )
        record, context = RequestRecord(request.id, request.endpoint), Context(request.id)
        sink = _TextSink(on_text)
        served.generate(request, sink, record, context)
        try:
            usage = await sink.done
        except asyncio.CancelledError:
            context.kill()
            raise
        return _answer(sink, usage, record)

    def _prepare(self, fields: dict[str, Any]) -> tuple[SamplingFields, ServedModel, Sequence[int]]:
        fields.setdefault("model", next(iter(self.names()), ""))
        if "messages" not in fields and isinstance(fields.get("prompt"), str):
            served = self._manager.get(fields["model"])
            if not served.template:
                completion = _decoded(fields, CompletionRequest)
                return completion, served, served.encode(fields["prompt"])
            fields["messages"] = [{"role": "user", "content": fields.pop("prompt")}]
        chat = _decoded(fields, ChatCompletionRequest)
        served = self._manager.get(chat.model)
        text = served.render_chat(chat.messages, **(chat.chat_template_kwargs or {}))
        return chat, served, served.encode(text, add_special_tokens=False)


class _TextSink:
    """An :class:`~dynamo_core.serving.output.OutputSink` that passes text on and keeps it."""

    def __init__(self, on_text: OnText) -> None:
        self.done: asyncio.Future[Usage] = asyncio.get_running_loop().create_future()
        self.texts: list[str] = []
        self._on_text = on_text
        self.finish_reason: str | None = None

    def text(self, index: int, text: str) -> None:
        del index
        self.texts.append(text)
        self._on_text(text)

    def output(self, index: int, output: ChoiceOutput) -> None:
        if output.text:
            self.text(index, output.text)
        if output.finish_reason is not None:
            self.finish_reason = output.finish_reason

    def flush(self) -> None:
        """Text was passed on as it came."""

    def completed(self, usage: Usage) -> None:
        if not self.done.done():
            self.done.set_result(usage)

    def failed(self, error: DynamoError) -> None:
        if not self.done.done():
            self.done.set_exception(error)


def _decoded(fields: Mapping[str, Any], kind: type[Any]) -> Any:
    try:
        return msgspec.convert(fields, kind)
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"The request does not fit: {error}.") from None


def _answer(sink: _TextSink, usage: Usage, record: RequestRecord) -> Answer:
    record.close(200, "completed")
    return Answer(
        text="".join(sink.texts),
        prompt_tokens=usage.prompt_tokens,
        output_tokens=usage.output_tokens,
        cached_tokens=usage.cached_tokens,
        finish_reason=sink.finish_reason,
        ttft=None if record.first_token is None else record.first_token - record.arrival,
        duration=monotonic() - record.arrival,
    )
