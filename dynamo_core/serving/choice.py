"""One choice of a generation: engine items in, text out. Its ``on_items`` is the hot path."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from time import monotonic
from typing import TYPE_CHECKING, Any

from dynamo_core.contracts import FinishReason, TokenLogprob
from dynamo_core.errors import DynamoError, EngineError
from dynamo_core.serving.output import ChoiceOutput, Logprob
from dynamo_core.serving.stop import StopMatcher
from dynamo_core.serving.tokenizer import Tokenizer
from dynamo_core.serving.wire import decode_chunk

if TYPE_CHECKING:
    from dynamo_core.serving.generation import Generation
    from dynamo_core.serving.sequence import Sequence as EngineSequence

__all__ = ["Choice"]

_log = logging.getLogger(__name__)


class Choice:
    """A :class:`~dynamo_core.serving.sequence.SequenceReceiver`.

    ``on_items`` holds one of three paths to the sink: the plain one (one detokenizer call and one sink call a token), the same
    with a look at stop strings, and a thorough one for log-probabilities and everything rare.
    """

    __slots__ = (
        "_detokenizer", "_flush", "_generation", "_index", "_logprobs", "_matcher", "_max_tokens", "_min_tokens", "_push",
        "_pushed", "_record", "_sink", "_steady", "_text", "_tokenizer", "_told", "_unsaid", "cached_tokens", "done",
        "finish_reason", "generated", "on_items", "sequence",
    )  # fmt: skip

    sequence: EngineSequence

    def __init__(self, generation: Generation, index: int, prompt: Sequence[int], tokenizer: Tokenizer) -> None:
        request = generation.request
        self._generation = generation
        self._index = index
        self._sink = generation.sink
        self._record = generation.record
        self._tokenizer = tokenizer
        self._detokenizer = tokenizer.detokenizer(request.skip_special_tokens, prompt)
        self._push = self._detokenizer.push
        self._text = generation.sink.text
        self._flush = generation.flush
        self._matcher = StopMatcher(request.stop, request.include_stop) if request.stop else None
        self._logprobs = request.logprobs
        self._max_tokens = request.conditions.max_tokens
        self._min_tokens = request.conditions.min_tokens
        # Log-probabilities wait for their token's text: (character of the output where it begins, entry).
        self._unsaid: deque[tuple[int, Logprob]] = deque()
        self._pushed = 0
        self._told = 0
        if request.logprobs is not None:
            self._steady: Callable[[list[Any]], None] = self._thorough_items
        else:
            self._steady = self._plain_items if self._matcher is None else self._matched_items
        self.on_items: Callable[[list[Any]], None] = self._first_items
        self.generated: list[int] = []
        self.cached_tokens: int | None = None
        """Of the first leg that told."""
        self.finish_reason: FinishReason | None = None
        self.done = False

    def on_routed(self, worker_id: int) -> None:
        self._record.worker_ids.append(worker_id)
        if self._record.routes is not None:
            placed = self.sequence.placed
            self._record.routes.append({"worker": worker_id, "explain": None if placed is None else placed.explain})

    def on_error(self, error: DynamoError) -> None:
        if self.done:
            return
        context = self._generation.context
        if context.is_killed():
            self._generation.cancelled(True)
        elif context.is_stopped():
            self.finish("cancelled")
        else:
            self._generation.fail(error)

    def close(self) -> None:
        """Take nothing more."""
        self.done = True
        self.on_items = self._steady = _ignore

    # --- items ---------------------------------------------------------------------------------------------------------------

    def _first_items(self, items: list[Any]) -> None:
        """Until the first token."""
        if self._record.first_token is None and any(type(item) is not dict or item.get("token_ids") for item in items):
            self._record.first_token = monotonic()
        self._steady(items)
        if self.generated and not self.done:
            self.on_items = self._steady

    def _plain_items(self, items: list[Any]) -> None:
        generated = self.generated
        if len(generated) + len(items) > self._max_tokens:
            self._thorough_items(items)
            return
        try:
            self._record.last_token = monotonic()
            for item in items:
                if item.__class__ is int:
                    generated.append(item)
                    text = self._push(item)
                    if text:
                        self._text(self._index, text)
                else:
                    self._other(item)
                if self.done:
                    return
            self._flush()
        except Exception as error:  # noqa: BLE001  # whatever it is, it must not reach the other streams of this frame
            self._broken(error)

    def _matched_items(self, items: list[Any]) -> None:
        generated, matcher = self.generated, self._matcher
        if matcher is None or len(generated) < self._min_tokens or len(generated) + len(items) > self._max_tokens:
            self._thorough_items(items)
            return
        try:
            self._record.last_token = monotonic()
            for item in items:
                if item.__class__ is int:
                    generated.append(item)
                    text = self._push(item)
                    if text:
                        text, matched = matcher.push(text)
                        if matched is not None:
                            self.finish("stop", matched, text=text, cut=True)
                        elif text:
                            self._text(self._index, text)
                else:
                    self._other(item)
                if self.done:
                    return
            self._flush()
        except Exception as error:  # noqa: BLE001  # as above
            self._broken(error)

    def _thorough_items(self, items: list[Any]) -> None:
        try:
            self._record.last_token = monotonic()
            for item in items:
                if item.__class__ is int:
                    self._tokens((item,), None)
                else:
                    self._other(item)
                if self.done:
                    return
            self._flush()
        except Exception as error:  # noqa: BLE001  # as above
            self._broken(error)

    def _other(self, item: Any) -> None:
        """Anything but a bare token."""
        if self.done:
            return
        chunk = decode_chunk(item)
        if chunk.cached_tokens is not None and self.cached_tokens is None and not self.generated:
            self.cached_tokens = chunk.cached_tokens
        if chunk.token_ids:
            self._tokens(chunk.token_ids, chunk.logprobs)
        if chunk.finish_reason is None or self.done:
            return
        if chunk.finish_reason == "error":
            _log.error("request %s: the engine failed: %s", self._generation.request.id, chunk.error)
            self._generation.fail(EngineError("The engine failed on this request."))
        elif chunk.finish_reason == "cancelled" and not self._generation.context.is_stopped():
            self._generation.fail(EngineError("The engine cancelled this request."))
        else:
            self.finish(chunk.finish_reason, chunk.stop_reason)

    def _tokens(self, token_ids: Sequence[int], logprobs: Sequence[TokenLogprob] | None) -> None:
        room = self._max_tokens - len(self.generated)
        for place, token_id in enumerate(token_ids[:room]):
            self.generated.append(token_id)
            text = self._push(token_id)
            if logprobs is not None and self._logprobs is not None and place < len(logprobs):
                self._unsaid.append((self._pushed, self._described(logprobs[place])))
            if self._say(text):
                return
        if len(token_ids) > room:  # an engine that does not count
            self.finish("length", cut=True)

    def _say(self, text: str) -> bool:
        """Tell what may be told after one more token; True when a stop string ended the choice."""
        self._pushed += len(text)
        matched: str | None = None
        if text and self._matcher is not None and len(self.generated) > self._min_tokens:
            text, matched = self._matcher.push(text)
        self._told += len(text)
        if matched is not None:
            self.finish("stop", matched, text=text, cut=True)
            return True
        logprobs = self._sayable()
        if logprobs:
            self._sink.output(self._index, ChoiceOutput(text, tuple(entry.token_id for entry in logprobs), logprobs))
        elif text:
            self._text(self._index, text)
        return False

    # --- the end -------------------------------------------------------------------------------------------------------------

    def finish(
        self, reason: FinishReason, stop_reason: int | str | None = None, *, text: str | None = None, cut: bool = False
    ) -> None:
        """Tell the rest. ``text``: it is this, the rest is void; ``cut``: the engine does not know yet that it is over."""
        if text is None:
            text = self._detokenizer.finish()
            self._pushed += len(text)
            if self._matcher is not None:
                text, matched = self._matcher.push(text) if text else ("", None)
                if matched is None:
                    text += self._matcher.flush()
                elif reason != "cancelled":
                    reason, stop_reason = "stop", matched
            self._told += len(text)
        self.close()
        self.finish_reason = reason
        logprobs = self._sayable()
        if cut:
            self.sequence.cut("completed")
        elif reason == "cancelled":
            self.sequence.cut("cancelled")
        else:
            self.sequence.complete()
        output = ChoiceOutput(text, tuple(entry.token_id for entry in logprobs), logprobs or None, reason, stop_reason)
        self._sink.output(self._index, output)
        self._generation.choice_finished()

    def _sayable(self) -> tuple[Logprob, ...]:
        """The entries of tokens whose text was told; all of them when nothing is held back."""
        unsaid = self._unsaid
        if not unsaid:
            return ()
        said: list[Logprob] = []
        while unsaid and (unsaid[0][0] < self._told or self._told == self._pushed):
            said.append(unsaid.popleft()[1])
        return tuple(said)

    def _described(self, entry: TokenLogprob) -> Logprob:
        text, data = self._tokenizer.token_text, self._tokenizer.token_bytes
        top = tuple(Logprob(text(token), token, logprob, data(token)) for token, logprob in entry.top[: self._logprobs])
        return Logprob(text(entry.token_id), entry.token_id, entry.logprob, data(entry.token_id), top)

    def _broken(self, error: Exception) -> None:
        _log.error("request %s failed in postprocessing", self._generation.request.id, exc_info=error)
        self._generation.fail(
            error if isinstance(error, DynamoError) else EngineError("The output of the engine could not be turned into text.")
        )


def _ignore(_: list[Any]) -> None:
    """Items of a choice that is over."""
