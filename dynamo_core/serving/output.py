"""What a generation is asked for and what it tells: the records between an HTTP API and the serving pipeline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, Protocol

import msgspec

from dynamo_core.contracts.engine import FinishReason, SamplingParams, StopConditions
from dynamo_core.contracts.router import NO_HINTS, RoutingHints
from dynamo_core.errors import DynamoError

__all__ = ["ChoiceOutput", "GenerationRequest", "Logprob", "OutputSink", "Usage"]


class GenerationRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that a client asked for, validated and tokenized."""

    id: str
    endpoint: Literal["chat", "completions"]
    prompts: tuple[Sequence[int], ...]
    """Token ids; several only for ``/v1/completions`` with a list."""
    n: int = 1
    """Choices a prompt. Choice ``index`` is ``prompt * n + choice``."""
    sampling: SamplingParams = SamplingParams()
    conditions: StopConditions = StopConditions()
    stop: tuple[str, ...] = ()
    """Stop strings; the text ends before the first that appears."""
    include_stop: bool = False
    """Keep the stop string in the text."""
    skip_special_tokens: bool = True
    logprobs: int | None = None
    """``None``: none; k: of each token and its k best alternatives."""
    priority: int = 0
    lora: str | None = None
    cache_salt: str | None = None
    session: str | None = None
    pinned: int | None = None
    """A worker that the client named."""
    headers: Mapping[str, str] = {}
    hints: RoutingHints = NO_HINTS


class Usage(msgspec.Struct, frozen=True):
    prompt_tokens: int
    output_tokens: int
    cached_tokens: int


class Logprob(msgspec.Struct, frozen=True):
    """One token as text, with its alternatives best first."""

    token: str
    token_id: int
    logprob: float
    bytes: bytes
    top: tuple[Logprob, ...] = ()


class ChoiceOutput(msgspec.Struct, frozen=True):
    """News of one choice. The one with a ``finish_reason`` is its last."""

    text: str = ""
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[Logprob, ...] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None


class OutputSink(Protocol):
    """The client's side of a generation. Called on the event loop, from within the frame's callback; must not block or raise.

    Calls come in bursts; each burst ends with ``flush``, ``completed`` or ``failed``. One of ``completed`` and ``failed`` comes
    exactly once and last, unless the context was killed: then nothing more comes.
    """

    def text(self, index: int, text: str) -> None:
        """More text of a choice and nothing else to say (the hot path; never empty)."""

    def output(self, index: int, output: ChoiceOutput) -> None: ...

    def flush(self) -> None:
        """All that arrived together was told: write it now."""

    def completed(self, usage: Usage) -> None: ...

    def failed(self, error: DynamoError) -> None: ...
