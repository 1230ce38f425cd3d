"""One generation: its choices, its usage and its one end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from dynamo_core.contracts import Context, Outcome
from dynamo_core.errors import DynamoError
from dynamo_core.serving.choice import Choice
from dynamo_core.serving.output import GenerationRequest, OutputSink, Usage
from dynamo_core.serving.record import RequestRecord
from dynamo_core.serving.timeouts import StreamTimer, Timeouts
from dynamo_core.serving.tokenizer import Tokenizer

__all__ = ["Generation"]


class Generation:
    """Drives one :class:`~dynamo_core.serving.output.OutputSink`. Made by ``ServedModel.generate``.

    Exactly one of these ends it: every choice finished (``completed``), an error (``failed``), a killed context (silence).
    By then the record has its tokens and the router its accounts; the record's ``close`` is the sink's owner's business.
    """

    def __init__(
        self,
        request: GenerationRequest,
        sink: OutputSink,
        record: RequestRecord,
        context: Context,
        tokenizer: Tokenizer,
        timeouts: Timeouts | None = None,
    ) -> None:
        self.request = request
        self.sink = sink
        self.record = record
        self.context = context
        self._loop = asyncio.get_running_loop()
        self._flushing = False
        self._paused = False
        self._ended = False
        self._timeouts = timeouts or Timeouts()
        self._timer: StreamTimer | None = None
        self._unregister: Callable[[], None] | None = None
        alone = request.n == 1 and len(request.prompts) == 1
        self.flush: Callable[[], None] = sink.flush if alone else self._flush_soon
        """Called by choices after each frame. A single choice writes at once, several share one write a turn."""
        self.choices: tuple[Choice, ...] = tuple(
            Choice(self, prompt_index * request.n + choice, prompt, tokenizer)
            for prompt_index, prompt in enumerate(request.prompts)
            for choice in range(request.n)
        )
        self._running = len(self.choices)
        record.prompt_tokens = sum(map(len, request.prompts))

    def begin(self) -> None:
        """Every choice has its sequence: watch the context. Called once by the served model."""
        if self.context.is_stopped():  # the sink hears of it after its owner holds this generation
            self._loop.call_soon(self._watch)
        else:
            self._watch()
        if not self._ended:
            self._timer = StreamTimer(self._timeouts, self.context.deadline, self.record, self.fail)

    def pause(self) -> None:
        """The client is slow: withhold credit from this generation's streams. They stop soon, not at once."""
        if not self._paused:
            self._paused = True
            if self._timer is not None:
                self._timer.pause()
            for choice in self.choices:
                choice.sequence.pause()

    def resume(self) -> None:
        if self._paused:
            self._paused = False
            if self._timer is not None:
                self._timer.resume()
            for choice in self.choices:
                choice.sequence.resume()

    def usage(self) -> Usage:
        """As of this moment. A prompt counts once, however many choices it has and however often they migrated."""
        cached = 0
        for index, prompt in enumerate(self.request.prompts):
            told = self.choices[index * self.request.n].cached_tokens
            cached += min(told or 0, len(prompt))
        return Usage(self.record.prompt_tokens, sum(len(choice.generated) for choice in self.choices), cached)

    # --- called by the choices -----------------------------------------------------------------------------------------------

    def choice_finished(self) -> None:
        self._running -= 1
        if self._ended:  # the sink killed the context from within its last call
            return
        if self._running:
            self.flush()
        else:
            self._settle()
            self.sink.completed(self.usage())
            self._part()

    def fail(self, error: DynamoError) -> None:
        """End all choices with an error."""
        if not self._ended:
            self._end("failed")
            self.sink.failed(error)
            self._part()

    # --- ends ----------------------------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        if not self._ended:
            self._unregister = self.context.on_cancel(self.cancelled)

    def cancelled(self, killed: bool) -> None:
        """The context was stopped or killed."""
        if self._ended:
            return
        if killed:
            self._end("cancelled")
            self._part()
            return
        for choice in self.choices:  # those on a worker are told by it
            if not choice.done and choice.sequence.waiting:
                choice.finish("cancelled")

    def _end(self, outcome: Outcome) -> None:
        for choice in self.choices:
            choice.close()
            choice.sequence.cut(outcome)
        self._settle()

    def _settle(self) -> None:
        self._ended = True
        if self._timer is not None:
            self._timer.close()
        unregister, self._unregister = self._unregister, None
        if unregister is not None:
            unregister()
        usage = self.usage()
        record = self.record
        record.output_tokens = usage.output_tokens
        record.cached_tokens = usage.cached_tokens
        record.finish_reasons = [choice.finish_reason for choice in self.choices if choice.finish_reason is not None]

    def _part(self) -> None:
        """Open the circles, so that all of it is freed at once: the garbage collector takes longer, while everybody waits."""
        self.choices = ()
        self.flush = self.sink.flush

    def _flush_soon(self) -> None:
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush_now)

    def _flush_now(self) -> None:
        self._flushing = False
        if not self._ended:
            self.sink.flush()
