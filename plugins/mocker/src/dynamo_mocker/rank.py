"""One data-parallel rank of the mocker with its step loop: schedule, let the step's time pass, emit, publish what the cache
gained and lost."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import NamedTuple

from dynamo_core.contracts import EngineChunk, FinishReason, KvEvent
from dynamo_core.kv.blocks import BlockManager
from dynamo_core.kv.scheduler import Scheduler, SchedulerLimits, Step
from dynamo_core.kv.timing import TimingModel
from dynamo_mocker.args import MockerArgs
from dynamo_mocker.metrics import Counts
from dynamo_mocker.stream import PRIME, Stream, Vocabulary

__all__ = ["House", "MockRank"]


class House(NamedTuple):
    """What the ranks of an engine share."""

    streams: dict[str, Stream]
    """All that run, by the id of their request."""
    vocabulary: Callable[[], Vocabulary]
    publish: Callable[[Sequence[KvEvent], int], None]


class MockRank:
    """Has a cache and a scheduler of its own. Owned by one event loop."""

    def __init__(self, number: int, args: MockerArgs, house: House) -> None:
        limits = SchedulerLimits(
            block_size=args.block_size, max_num_seqs=args.max_num_seqs, max_num_batched_tokens=args.max_num_batched_tokens
        )
        blocks = BlockManager(args.num_blocks, caching=args.enable_prefix_caching)
        timing = TimingModel(speedup_ratio=args.speedup_ratio, decode_speedup_ratio=args.decode_speedup_ratio)
        self.number = number
        self.scheduler = Scheduler(limits, blocks, timing)
        self.counts = Counts()
        self.idle = asyncio.Event()
        self.idle.set()
        self._house = house
        self._streams = house.streams
        self._vocabulary = Vocabulary(8)
        self._cancelled: list[Stream] = []
        self._wake = asyncio.Event()

    def add(self, stream: Stream) -> None:
        self.scheduler.add(stream)
        self.idle.clear()
        self._wake.set()

    def cancel(self, stream: Stream) -> None:
        """It ends within the step."""
        self._cancelled.append(stream)

    def clear_cache(self) -> None:
        self.scheduler.blocks.clear()
        self._publish()

    async def run(self) -> None:
        """Until cancelled."""
        clock = asyncio.get_running_loop().time
        self._vocabulary = self._house.vocabulary()
        due = clock()
        while True:
            self._drop_cancelled()
            began = clock()
            step = self.scheduler.schedule()
            if step is None:
                self._wake.clear()
                self.idle.set()
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
            self.scheduler.complete(step)
            self._publish()

    def _emit(self, step: Step, now: float, began: float) -> None:
        """One token for every sequence of the step. The loop over plain streams is the hot path of the worker."""
        counts = self.counts
        low, span = self._vocabulary.low, self._vocabulary.span
        rich: list[Stream] = []
        stream: Stream
        for stream in self.scheduler.decoding:  # type: ignore[assignment]  # only streams are added
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
            self.counts.ttft.observe(now - stream.arrival)
            self.counts.prompt += stream.prompt_tokens
            self.counts.cached += cached
        if token in stream.stops and stream.sampled >= request.stop.min_tokens:
            reason = token if token in request.stop.stop_token_ids else None
            self._finish(stream, EngineChunk(finish_reason="stop", stop_reason=reason, cached_tokens=cached))
            self.scheduler.remove(stream)
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
        self.counts.finished["abort" if reason == "cancelled" else reason or "stop"] += 1
        if reason != "cancelled":
            self.counts.e2e.observe(asyncio.get_running_loop().time() - stream.arrival)
        stream.sink.chunk(chunk)

    def _drop_cancelled(self) -> None:
        if not self._cancelled:
            return
        cancelled, self._cancelled = self._cancelled, []
        for stream in cancelled:
            if self._streams.get(stream.request.id) is stream:
                self._finish(stream, EngineChunk(finish_reason="cancelled"))
                self.scheduler.remove(stream)

    def _publish(self) -> None:
        events = self.scheduler.blocks.take_events()
        if events:
            self._house.publish(events, self.number)
