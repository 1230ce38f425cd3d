"""What is asked and what comes back, whoever answers: the pipeline in this process or a server."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias

import msgspec

__all__ = ["Answer", "Message", "OnText", "Responder"]

Message: TypeAlias = dict[str, Any]
"""``role`` and ``content``."""
OnText: TypeAlias = Callable[[str], None]


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    text: str
    prompt_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    finish_reason: str | None = None
    ttft: float | None = None
    """Seconds from the question to the first token; ``None`` without a token."""
    duration: float = 0.0
    """Seconds from the question to the end."""

    @property
    def tokens_per_second(self) -> float:
        """Of the output, after its first token; 0 for a single token."""
        spent = self.duration - (self.ttft or 0.0)
        return (self.output_tokens - 1) / spent if self.output_tokens > 1 and spent > 0 else 0.0


class Responder(Protocol):
    """Answers conversations for somebody who waits. Called from one thread, which it blocks."""

    model: str

    def models(self) -> Sequence[str]:
        """Names that ``model`` may be set to."""
        ...

    def ask(self, messages: Sequence[Message], options: Mapping[str, Any], on_text: OnText) -> Answer:
        """``options`` are fields of a chat completion request. Ctrl-C cancels the request and is raised."""
        ...

    def close(self) -> None: ...
