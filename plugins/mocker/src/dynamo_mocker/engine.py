"""The mocker as an engine: its life, and requests on their way to one of its data-parallel ranks."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from typing import Any

from dynamo_core.contracts import (
    Context,
    EngineChunk,
    EngineContext,
    EngineInfo,
    EngineLoad,
    EngineRequest,
    EngineSink,
    KvEvent,
    StopConditions,
)
from dynamo_core.errors import InvalidRequest
from dynamo_mocker.args import MockerArgs, decode_args, read_limits
from dynamo_mocker.metrics import MockerMetrics
from dynamo_mocker.rank import House, MockRank
from dynamo_mocker.stream import Stream, Vocabulary

__all__ = ["MockEngine"]

_log = logging.getLogger(__name__)
_DEFAULT_VOCABULARY = 32_000


class MockEngine:
    """A :class:`~dynamo_core.contracts.StepEngine`. Owned by one event loop; only ``metrics`` is thread-safe."""

    def __init__(self, _config: Any, context: EngineContext) -> None:
        self.args: MockerArgs = decode_args(context.args)
        self._context = context
        self._vocabulary = Vocabulary(self.args.vocab_size or _DEFAULT_VOCABULARY)
        self._streams: dict[str, Stream] = {}
        house = House(self._streams, lambda: self._vocabulary, self._publish)
        self._ranks = [MockRank(number, self.args, house) for number in range(self.args.data_parallel_size)]
        self._metrics = MockerMetrics(context.model_name, [(rank.counts, rank.scheduler) for rank in self._ranks])
        self._tasks: list[asyncio.Task[None]] = []

    # --- life ----------------------------------------------------------------------------------------------------------------

    async def start(self) -> EngineInfo:
        args = self.args
        model = await asyncio.to_thread(read_limits, self._context.model_path)
        if args.vocab_size is None and model.vocab_size >= 8:
            self._vocabulary = Vocabulary(model.vocab_size)
        await asyncio.sleep(args.startup_time)
        for rank in self._ranks:
            task = asyncio.create_task(rank.run(), name=f"mocker steps of rank {rank.number}")
            task.add_done_callback(self._ended)
            self._tasks.append(task)
        capacity = self._capacity
        return EngineInfo(
            context_length=min(capacity, model.context_length or capacity),
            block_size=args.block_size,
            total_kv_blocks=args.num_blocks,
            max_num_seqs=args.max_num_seqs,
            max_num_batched_tokens=args.max_num_batched_tokens,
            kv_events=args.enable_prefix_caching,
            data_parallel_size=args.data_parallel_size,
            resume={"penalties": "exact", "guided": "exact"},  # a token follows from the ids before it and nothing else
        )

    async def drain(self) -> None:
        """Until nothing runs."""
        while not all(rank.idle.is_set() for rank in self._ranks):
            for rank in self._ranks:
                await rank.idle.wait()

    async def stop(self) -> None:
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def clear_cache(self) -> None:
        for rank in self._ranks:
            rank.clear_cache()

    async def sleep(self) -> None:
        """What a real engine would give back is its cache's memory."""
        await self.clear_cache()

    async def wake(self) -> None:
        """The cache is empty, as a real one's is."""

    def load(self) -> EngineLoad:
        schedules = [rank.scheduler for rank in self._ranks]
        return EngineLoad(
            running=sum(len(schedule.running) for schedule in schedules),
            waiting=sum(len(schedule.waiting) for schedule in schedules),
            kv_used_blocks=sum(schedule.blocks.used for schedule in schedules),
            kv_total_blocks=sum(schedule.blocks.total for schedule in schedules),
            prefill_tokens=sum(schedule.prefill_tokens() for schedule in schedules),
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
        rank = self._rank(request)
        room = self._capacity - len(request.token_ids)
        if room < 1:
            raise InvalidRequest(
                f"The prompt has {len(request.token_ids)} tokens and the KV cache holds {self._capacity}; shorten it.",
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
        rank.add(stream)
        stream.unregister = context.on_cancel(lambda _killed: rank.cancel(stream))

    async def generate(self, request: EngineRequest, context: Context) -> AsyncIterator[EngineChunk]:
        queue = _Queue()
        own = context.child()
        self.submit(request, queue, own)
        try:
            while True:
                chunk = await queue.get()
                yield chunk
                if chunk.finish_reason is not None:
                    return
        finally:
            own.kill()

    @property
    def _capacity(self) -> int:
        """Tokens in the cache of a rank."""
        return self._ranks[0].scheduler.capacity

    def _rank(self, request: EngineRequest) -> MockRank:
        """The one that the router chose, else the one with the fewest sequences."""
        if request.dp_rank is None:
            return min(self._ranks, key=lambda rank: len(rank.scheduler.running) + len(rank.scheduler.waiting))
        if not 0 <= request.dp_rank < len(self._ranks):
            raise InvalidRequest(
                f"This worker has {len(self._ranks)} data-parallel ranks, none is {request.dp_rank}.", param="dp_rank"
            )
        return self._ranks[request.dp_rank]

    def _publish(self, events: Sequence[KvEvent], rank: int) -> None:
        if rank:
            self._context.publish_kv_events(events, rank)
        else:
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
