"""One running sequence: takes vLLM's outputs, gives ours."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from dynamo_core.contracts import EngineChunk, EngineRequest, EngineSink, FinishReason, TokenLogprob

__all__ = ["Stream", "StreamOwner"]

_FINISH: Mapping[str, FinishReason] = {
    "stop": "stop", "length": "length", "abort": "cancelled", "error": "error", "repetition": "stop",
}  # fmt: skip


class StreamOwner(Protocol):
    """The engine, as a stream sees it."""

    def ended(self, stream: Stream) -> None:
        """The stream has emitted its last chunk."""
        ...

    def first_token(self, stream: Stream) -> None:
        """The prompt is computed."""
        ...

    def died(self, error: Exception) -> bool:
        """True when ``error`` means that the whole engine is dead. Tells the worker."""
        ...


class Stream:
    """Stands where vLLM expects its ``RequestOutputCollector``: :meth:`put` is called once an engine step, on the event loop.

    So there is neither a task nor a queue between vLLM's output handler and the worker's endpoint.
    """

    __slots__ = (
        "_logprobs",
        "_owner",
        "_sink",
        "_stops",
        "done",
        "plain",
        "prefilling",
        "prompt_tokens",
        "request_id",
        "unregister",
    )

    def __init__(self, request: EngineRequest, sink: EngineSink, owner: StreamOwner) -> None:
        self.request_id = ""
        """vLLM's own, internal one."""
        self.prompt_tokens = len(request.token_ids)
        self.prefilling = True
        self.done = False
        self.unregister: Callable[[], None] | None = None
        self._sink = sink
        self._owner = owner
        self._logprobs = request.logprobs
        self._stops = frozenset(request.stop.stop_token_ids)
        self.plain = False
        """An output that has tokens and nothing else may be given to :meth:`tokens` instead of :meth:`put`."""

    def tokens(self, token_ids: Sequence[int]) -> None:
        """The tokens of a step, and the sequence goes on."""
        if len(token_ids) == 1:
            self._sink.token(token_ids[0])
        elif token_ids:
            self._sink.chunk(EngineChunk(tuple(token_ids)))

    def put(self, output: Any) -> None:
        """``output`` is a vLLM ``RequestOutput`` with the tokens of this step, or what went wrong."""
        if self.done:
            return
        if isinstance(output, Exception):
            self.failed(output)
            return
        completion = output.outputs[0]
        token_ids: Sequence[int] = completion.token_ids
        finish = completion.finish_reason
        if self.plain and finish is None:
            self.tokens(token_ids)
            return
        self._put_rich(output, completion, token_ids, finish)

    def _put_rich(self, output: Any, completion: Any, token_ids: Sequence[int], finish: str | None) -> None:
        cached = None
        if self.prefilling and (token_ids or finish is not None):
            cached = output.num_cached_tokens
            self.prefilling = False
            self.plain = self._logprobs is None
            self._owner.first_token(self)
        if finish is None and not token_ids:
            return
        stop = completion.stop_reason
        if finish == "stop" and token_ids and not isinstance(stop, str):
            token_ids = token_ids[:-1]  # the token that ended it is no output
        chunk = EngineChunk(
            tuple(token_ids),
            finish_reason=None if finish is None else _FINISH.get(finish, "error"),
            stop_reason=stop if stop in self._stops else None,
            cached_tokens=cached,
            logprobs=self._read_logprobs(completion.logprobs, token_ids),
            error=f"vLLM ended the sequence with {finish!r}"
            if finish is not None and _FINISH.get(finish, "error") == "error"
            else None,
        )
        if finish is None:
            self._sink.chunk(chunk)
        else:
            self._end(chunk)

    def failed(self, error: Exception) -> None:
        """vLLM gave the sequence up."""
        if not self.done:
            self._owner.died(error)
            self._end(EngineChunk(finish_reason="error", error=f"{type(error).__name__}: {error}"))

    def cancelled(self) -> None:
        """Nothing was heard of vLLM, and nothing is wanted any more."""
        if not self.done:
            self._end(EngineChunk(finish_reason="cancelled"))

    def _end(self, chunk: EngineChunk) -> None:
        self.done = True
        self.plain = False
        if self.unregister is not None:
            self.unregister()
        self._owner.ended(self)
        self._sink.chunk(chunk)

    def _read_logprobs(self, positions: Any, token_ids: Sequence[int]) -> tuple[TokenLogprob, ...] | None:
        count = self._logprobs
        if count is None or not token_ids or not positions:
            return None
        return tuple(_logprob(token, found, count) for token, found in zip(token_ids, positions, strict=False))


def _logprob(token: int, found: Mapping[int, Any], count: int) -> TokenLogprob:
    """``found`` maps the sampled token and the best ones to ``Logprob(logprob, rank)``, the sampled one first."""
    best = sorted((entry.rank or 1, candidate) for candidate, entry in found.items() if (entry.rank or 1) <= count)
    top = tuple((candidate, found[candidate].logprob) for _, candidate in best)
    return TokenLogprob(token, found[token].logprob, top)
