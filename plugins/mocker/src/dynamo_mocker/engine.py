"""The mocker's step loop: schedule, let the step's time pass, emit, publish what the cache gained and lost."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

from dynamo_core.contracts import (
    Context,
    EngineChunk,
    EngineContext,
    EngineInfo,
    EngineLoad,
    EngineRequest,
    EngineSink,
    FinishReason,
    StopConditions,
)
from dynamo_core.errors import InvalidRequest
from dynamo_core.kv.blocks import BlockManager
from dynamo_core.kv.scheduler import Scheduler, SchedulerLimits, Step
from dynamo_core.kv.timing import TimingModel
from dynamo_mocker.args import MockerArgs, decode_args, read_limits
from dynamo_mocker.metrics import Counts, MockerMetrics
from dynamo_mocker.stream import PRIME, Stream, Vocabulary

__all__ = ["MockEngine"]

_log = logging.getLogger(__name__)
_DEFAULT_VOCABULARY = 32_000


class MockEngine:
    """A :class:`~dynamo_core.contracts.StepEngine`. Owned by one event loop; only ``metrics`` is thread-safe."""

    def __init__(self, _config: Any, context: EngineContext) -> None:
        self.args: MockerArgs = decode_args(context.args)
        self._context = context
        args = self.args
        limits = SchedulerLimits(
            block_size=args.block_size, max_num_seqs=args.max_num_seqs, max_num_batched_tokens=args.max_num_batched_tokens
        )
        blocks = BlockManager(args.num_blocks, caching=args.enable_prefix_caching)
        timing = TimingModel(speedup_ratio=args.speedup_ratio, decode_speedup_ratio=args.decode_speedup_ratio)
        self._scheduler = Scheduler(limits, blocks, timing)
        self._counts = Counts()
        self._metrics = MockerMetrics(context.model_name, self._counts, self._scheduler)
        self._vocabulary = Vocabulary(args.vocab_size or _DEFAULT_VOCABULARY)
        self._streams: dict[str, Stream] = {}
        self._cancelled: list[Stream] = []
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._task: asyncio.Task[None] | None = None

    # --- life ----------------------------------------------------------------------------------------------------------------

    async def start(self) -> EngineInfo:
        args = self.args
        model = await asyncio.to_thread(read_limits, self._context.model_path)
        if args.vocab_size is None and model.vocab_size >= 8:
            self._vocabulary = Vocabulary(model.vocab_size)
        await asyncio.sleep(args.startup_time)
        self._task = asyncio.create_task(self._run(), name="mocker steps")
        self._task.add_done_callback(self._ended)
        capacity = self._scheduler.capacity
        return EngineInfo(
            context_length=min(capacity, model.context_length or capacity),
            block_size=args.block_size,
            total_kv_blocks=args.num_blocks,
            max_num_seqs=args.max_num_seqs,
            max_num_batched_tokens=args.max_num_batched_tokens,
            kv_events=args.enable_prefix_caching,
        )

    async def drain(self) -> None:
        """Until nothing runs."""
        await self._idle.wait()

    async def stop(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def clear_cache(self) -> None:
        self._scheduler.blocks.clear()
        self._publish()

    def load(self) -> EngineLoad:
        schedule = self._scheduler
        return EngineLoad(
            running=len(schedule.running),
            waiting=len(schedule.waiting),
            kv_used_blocks=schedule.blocks.used,
            kv_total_blocks=schedule.blocks.total,
            prefill_tokens=schedule.prefill_tokens(),
        )

    def metrics(self) -> bytes:
        return self._metrics.render()

    def health_payload(self) -> EngineRequest:
        return EngineRequest(id="health", token_ids=(self._vocabulary.low,), stop=StopConditions(max_tokens=1, ignore_eos=True))

    # --- requests ------------------------------------------------------------------------------------------------------------

    def submit(self, request: EngineRequest, sink: EngineSink, context: Context) -> None:
        if not request.token_ids:
            raise InvalidRequest("The prompt is empty; an engine needs at least one token.", param="prompt")
        if request.id in self._streams:
            raise InvalidRequest(f"Request {request.id!r} is already running on this engine.")
        room = self._scheduler.capacity - len(request.token_ids)
        if room < 1:
            raise InvalidRequest(
                f"The prompt has {len(request.token_ids)} tokens and the KV cache holds {self._scheduler.capacity}; shorten it.",
                param="prompt",
                code="context_length_exceeded",
            )
        stream = Stream(
            request,
            sink,
            block_size=self.args.block_size,
            caching=self.args.enable_prefix_caching,
            max_tokens=max(1, min(request.stop.max_tokens, room)),
            arrival=asyncio.get_running_loop().time(),
        )
        stream.restrict(self._vocabulary, emit_eos=self.args.emit_eos)
        self._streams[request.id] = stream
        self._scheduler.add(stream)
        self._idle.clear()
        self._wake.set()
        stream.unregister = context.on_cancel(lambda _killed: self._cancelled.append(stream))

    async def generate(self, request: EngineRequest, context: Context) -> AsyncIterator[EngineChunk]:
        queue = _Queue()
        self.submit(request, queue, context)
        stream = self._streams[request.id]
        try:
            while True:
                chunk = await queue.get()
                yield chunk
                if chunk.finish_reason is not None:
                    return
        finally:
            self._cancelled.append(stream)

    # --- steps ---------------------------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        clock = asyncio.get_running_loop().time
        due = clock()
        while True:
            self._drop_cancelled()
            began = clock()
            step = self._scheduler.schedule()
            if step is None:
                self._wake.clear()
                self._idle.set()
                await self._wake.wait()
                due = clock()
                continue
            if step.ms:
                # Against a due time, so that late timers do not add up; what a busy machine is behind is let go.
                due = max(due, began - step.ms / 1000) + step.ms / 1000
                await asyncio.sleep(max(0.0, due - began))
            else:
                await asyncio.sleep(0)
            self._drop_cancelled()
            self._emit(step, clock(), began)
            self._scheduler.complete(step)
            self._publish()

    def _emit(self, step: Step, now: float, began: float) -> None:
        """One token for every sequence of the step. The loop over plain streams is the hot path of the worker."""
        counts = self._counts
        low, span = self._vocabulary.low, self._vocabulary.span
        rich: list[Stream] = []
        stream: Stream
        for stream in self._scheduler.decoding:  # type: ignore[assignment]  # only streams are added
            if stream.plain:
                state = stream.state
                token = low + state % span
                stream.state = (state << 32 | token) % PRIME
                stream.keep(token)
                stream.emit(token)
            else:
                rich.append(stream)
        for stream in rich:
            self._next(stream, last=False)
        for stream in step.ending:  # type: ignore[assignment]
            if stream.request.id in self._streams:
                self._next(stream, last=True)
        for stream in step.prefilled:  # type: ignore[assignment]
            if stream.request.id in self._streams:
                self._next(stream, last=stream.generated + 1 >= stream.max_tokens, now=now)
        counts.generated += step.decoded + len(step.prefilled)
        counts.preemptions += len(step.preempted)
        if step.decoded:
            counts.itl.observe(now - began, step.decoded)

    def _next(self, stream: Stream, *, last: bool, now: float | None = None) -> None:
        """The next token of a stream about which there is more to say than the token. ``now``: its prompt was just finished."""
        request = stream.request
        token = stream.sample(self._vocabulary)
        cached = None
        if now is not None and stream.first_token is None:
            stream.first_token = now
            cached = stream.cached
            self._counts.ttft.observe(now - stream.arrival)
            self._counts.prompt += stream.prompt_tokens
            self._counts.cached += cached
        if token in stream.stops and stream.sampled >= request.stop.min_tokens:
            reason = token if token in request.stop.stop_token_ids else None
            self._finish(stream, EngineChunk(finish_reason="stop", stop_reason=reason, cached_tokens=cached))
            self._scheduler.remove(stream)
            return
        logprobs = None if request.logprobs is None else (stream.logprob(token, self._vocabulary),)
        stream.accept(token)
        if last:
            self._finish(stream, EngineChunk((token,), finish_reason="length", cached_tokens=cached, logprobs=logprobs))
        elif cached is None and logprobs is None:
            stream.emit(token)
        else:
            stream.sink.chunk(EngineChunk((token,), cached_tokens=cached, logprobs=logprobs))

    def _finish(self, stream: Stream, chunk: EngineChunk) -> None:
        """Forget the stream and tell its sink."""
        del self._streams[stream.request.id]
        if stream.unregister is not None:
            stream.unregister()
        reason: FinishReason | None = chunk.finish_reason
        self._counts.finished["abort" if reason == "cancelled" else reason or "stop"] += 1
        if reason != "cancelled":
            self._counts.e2e.observe(asyncio.get_running_loop().time() - stream.arrival)
        stream.sink.chunk(chunk)

    def _drop_cancelled(self) -> None:
        if not self._cancelled:
            return
        cancelled, self._cancelled = self._cancelled, []
        for stream in cancelled:
            if self._streams.get(stream.request.id) is stream:
                self._finish(stream, EngineChunk(finish_reason="cancelled"))
                self._scheduler.remove(stream)

    def _publish(self) -> None:
        events = self._scheduler.blocks.take_events()
        if events:
            self._context.publish_kv_events(events)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("the mocker's step loop ended", exc_info=error)
            self._context.on_fatal(f"The mocker's step loop ended: {error!r}.")


class _Queue(asyncio.Queue[EngineChunk]):
    """A sink for those who read chunks; holds at most the request's ``max_tokens``."""

    def token(self, token_id: int) -> None:
        self.put_nowait(EngineChunk((token_id,)))

    def chunk(self, chunk: EngineChunk) -> None:
        self.put_nowait(chunk)
