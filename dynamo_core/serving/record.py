"""The one account of a request: opened when it arrives, closed exactly once."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import Any, Literal

from dynamo_core.contracts.gate import Principal, RequestSummary
from dynamo_core.contracts.model_card import ModelCard

__all__ = ["RequestRecord"]


class RequestRecord:
    """Filled in by the HTTP layer and the pipeline while a request runs; plain attributes, since the hot path writes them.

    ``observer`` gets the summary on :meth:`close`; closing again changes nothing, so every exit path may close.
    """

    __slots__ = (
        "_observer", "arrival", "cached_tokens", "card", "endpoint", "finish_reasons", "first_token", "id", "last_token",
        "left", "model", "output_tokens", "principal", "prompt_tokens", "routes", "stream", "summary", "worker_ids",
    )  # fmt: skip

    def __init__(self, id: str, endpoint: str, observer: Callable[[RequestSummary], None] | None = None) -> None:
        self.id = id
        self.endpoint = endpoint
        self.arrival = monotonic()
        self.model = ""
        self.card: ModelCard | None = None
        self.principal: Principal | None = None
        self.stream = False
        self.prompt_tokens = 0
        self.cached_tokens = 0
        self.output_tokens = 0
        self.worker_ids: list[int] = []
        self.routes: list[dict[str, Any]] | None = None
        """Why each worker was chosen; ``None`` where nobody wants to know."""
        self.first_token: float | None = None
        """Monotonic seconds, as is ``last_token``."""
        self.last_token: float | None = None
        self.finish_reasons: list[str] = []
        self.left = False
        """The client is gone: whatever the end, it is a cancellation."""
        self.summary: RequestSummary | None = None
        self._observer = observer

    def close(
        self, status: int, outcome: Literal["completed", "cancelled", "failed", "rejected"], error: str | None = None
    ) -> RequestSummary:
        """Settle the account. Returns the summary of the first call."""
        if self.summary is None:
            if self.left:
                status, outcome, error = 499, "cancelled", "cancelled"
            self.summary = RequestSummary(
                id=self.id,
                model=self.model,
                endpoint=self.endpoint,
                principal=self.principal,
                status=status,
                outcome=outcome,
                error=error,
                stream=self.stream,
                prompt_tokens=self.prompt_tokens,
                cached_tokens=self.cached_tokens,
                output_tokens=self.output_tokens,
                worker_ids=tuple(self.worker_ids),
                ttft=None if self.first_token is None else self.first_token - self.arrival,
                duration=monotonic() - self.arrival,
                finish_reasons=tuple(self.finish_reasons),
            )
            observer, self._observer = self._observer, None
            if observer is not None:
                observer(self.summary)
        return self.summary
