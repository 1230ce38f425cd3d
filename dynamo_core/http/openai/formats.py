"""How choices become OpenAI's chunks and bodies, for both APIs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec
from msgspec import UNSET

from dynamo_core.http.openai.types import (
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    ChatLogprobs,
    ChatMessage,
    ChatToken,
    Completion,
    CompletionChoice,
    CompletionChunk,
    CompletionLogprobs,
    Delta,
    PromptTokensDetails,
    TopToken,
    UsageBody,
)
from dynamo_core.http.sse import event
from dynamo_core.http.unary import Collected
from dynamo_core.serving.output import ChoiceOutput, Logprob, Usage

__all__ = ["ChatBody", "ChatChunks", "CompletionBody", "CompletionChunks", "Heading", "UsageStats", "usage_body"]

_encode = msgspec.json.Encoder().encode

CurrentUsage = Callable[[], Usage]


class Heading(msgspec.Struct, frozen=True):
    """What all chunks of a response begin with."""

    id: str
    created: int
    model: str


class UsageStats(msgspec.Struct):
    """When a stream tells its usage. ``current`` is set once the generation runs."""

    final: bool = False
    continuous: bool = False
    current: CurrentUsage | None = None

    def so_far(self) -> UsageBody | None:
        return usage_body(self.current()) if self.continuous and self.current is not None else None


def usage_body(usage: Usage) -> UsageBody:
    return UsageBody(
        usage.prompt_tokens,
        usage.output_tokens,
        usage.prompt_tokens + usage.output_tokens,
        PromptTokensDetails(usage.cached_tokens),
    )


class ChatChunks:
    """The :class:`~dynamo_core.http.sse.ChunkFormat` of ``/v1/chat/completions``."""

    def __init__(self, heading: Heading, choices: int, stats: UsageStats) -> None:
        self._heading = heading
        self._stats = stats
        self._null_usage = stats.final or stats.continuous
        head = _head(heading, "chat.completion.chunk")
        self.prefixes = [head + b'{"index":%d,"delta":{"content":' % index for index in range(choices)]
        self.suffix = b'},"logprobs":null,"finish_reason":null}]' + (b',"usage":null' if self._null_usage else b"") + b"}\n\n"
        self.plain = not stats.continuous

    def opening(self, index: int) -> bytes:
        return self._event(ChatChunkChoice(index, Delta("assistant", "")))

    def chunks(self, index: int, output: ChoiceOutput) -> bytes:
        data = b""
        if output.text or output.logprobs:
            data = self._event(ChatChunkChoice(index, Delta(content=output.text), _chat_logprobs(output.logprobs)))
        if output.finish_reason is not None:
            stop_reason = UNSET if output.stop_reason is None else output.stop_reason
            data += self._event(ChatChunkChoice(index, Delta(), None, output.finish_reason, stop_reason))
        return data

    def closing(self, usage: Usage) -> bytes:
        return self._chunk([], usage_body(usage)) if self._stats.final else b""

    def _event(self, choice: ChatChunkChoice) -> bytes:
        return self._chunk([choice], self._stats.so_far() if self._null_usage else UNSET)

    def _chunk(self, choices: list[ChatChunkChoice], usage: UsageBody | msgspec.UnsetType | None) -> bytes:
        heading = self._heading
        return event(_encode(ChatChunk(heading.id, "chat.completion.chunk", heading.created, heading.model, choices, usage)))


class CompletionChunks:
    """The :class:`~dynamo_core.http.sse.ChunkFormat` of ``/v1/completions``. ``echo``: the prompt's text, per choice."""

    def __init__(self, heading: Heading, choices: int, stats: UsageStats, echo: Sequence[str] = ()) -> None:
        self._heading = heading
        self._stats = stats
        self._null_usage = stats.final or stats.continuous
        self._echo = echo
        self._offsets = [len(echo[index]) if echo else 0 for index in range(choices)]
        head = _head(heading, "text_completion")
        self.prefixes = [head + b'{"index":%d,"text":' % index for index in range(choices)]
        self.suffix = b',"logprobs":null,"finish_reason":null}]' + (b',"usage":null' if self._null_usage else b"") + b"}\n\n"
        self.plain = not stats.continuous

    def opening(self, index: int) -> bytes:
        return self._event(CompletionChoice(index, self._echo[index])) if self._echo else b""

    def chunks(self, index: int, output: ChoiceOutput) -> bytes:
        data = b""
        if output.text or output.logprobs:
            logprobs, self._offsets[index] = _completion_logprobs(output.logprobs, self._offsets[index])
            data = self._event(CompletionChoice(index, output.text, logprobs))
        if output.finish_reason is not None:
            stop_reason = UNSET if output.stop_reason is None else output.stop_reason
            data += self._event(CompletionChoice(index, "", None, output.finish_reason, stop_reason))
        return data

    def closing(self, usage: Usage) -> bytes:
        return self._chunk([], usage_body(usage)) if self._stats.final else b""

    def _event(self, choice: CompletionChoice) -> bytes:
        return self._chunk([choice], self._stats.so_far() if self._null_usage else UNSET)

    def _chunk(self, choices: list[CompletionChoice], usage: UsageBody | msgspec.UnsetType | None) -> bytes:
        heading = self._heading
        return event(_encode(CompletionChunk(heading.id, "text_completion", heading.created, heading.model, choices, usage)))


class ChatBody(msgspec.Struct, frozen=True):
    """The :class:`~dynamo_core.http.unary.BodyFormat` of ``/v1/chat/completions``."""

    heading: Heading
    logprobs: bool

    def __call__(self, choices: Sequence[Collected], usage: Usage) -> ChatCompletion:
        heading = self.heading
        items = [
            ChatChoice(
                index,
                ChatMessage("assistant", choice.text),
                ChatLogprobs([_chat_token(entry) for entry in choice.logprobs]) if self.logprobs else None,
                choice.finish_reason,
                choice.stop_reason,
            )
            for index, choice in enumerate(choices)
        ]
        return ChatCompletion(heading.id, "chat.completion", heading.created, heading.model, items, usage_body(usage))


class CompletionBody(msgspec.Struct, frozen=True):
    """The :class:`~dynamo_core.http.unary.BodyFormat` of ``/v1/completions``."""

    heading: Heading
    logprobs: bool
    echo: Sequence[str] = ()

    def __call__(self, choices: Sequence[Collected], usage: Usage) -> Completion:
        heading = self.heading
        items: list[CompletionChoice] = []
        for index, choice in enumerate(choices):
            echo = self.echo[index] if self.echo else ""
            logprobs, _ = _completion_logprobs(choice.logprobs, len(echo)) if self.logprobs else (None, 0)
            items.append(CompletionChoice(index, echo + choice.text, logprobs, choice.finish_reason, choice.stop_reason))
        return Completion(heading.id, "text_completion", heading.created, heading.model, items, usage_body(usage))


def _head(heading: Heading, object: str) -> bytes:
    """An event up to its first choice."""
    record = {"id": heading.id, "object": object, "created": heading.created, "model": heading.model}
    return b"data: " + _encode(record)[:-1] + b',"choices":['


def _chat_token(entry: Logprob) -> ChatToken:
    top = [TopToken(one.token, _finite(one.logprob), list(one.bytes)) for one in entry.top]
    return ChatToken(entry.token, _finite(entry.logprob), list(entry.bytes), top)


def _finite(logprob: float) -> float:
    """JSON has no infinity; -9999 is what OpenAI sends for it."""
    return max(logprob, -9999.0)


def _chat_logprobs(entries: Sequence[Logprob] | None) -> ChatLogprobs | None:
    return ChatLogprobs([_chat_token(entry) for entry in entries]) if entries else None


def _completion_logprobs(entries: Sequence[Logprob] | None, offset: int) -> tuple[CompletionLogprobs | None, int]:
    """The old format, and where the next token's text begins."""
    if not entries:
        return None, offset
    offsets: list[int] = []
    tops: list[dict[str, float]] = []
    for entry in entries:
        offsets.append(offset)
        offset += len(entry.token)
        best = {one.token: _finite(one.logprob) for one in entry.top}
        best.setdefault(entry.token, _finite(entry.logprob))
        tops.append(best)
    tokens, logprobs = [entry.token for entry in entries], [_finite(entry.logprob) for entry in entries]
    return CompletionLogprobs(offsets, logprobs, tokens, tops), offset
