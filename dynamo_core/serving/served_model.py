"""One model as this frontend serves it: its text side, its workers and the way to them."""

from __future__ import annotations

import secrets
import time
from array import array
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from typing import Any

import msgspec

from dynamo_core.contracts import (
    BusyThresholds,
    Context,
    EngineRequest,
    EventPlane,
    ModelCard,
    OutputFilter,
    OutputStream,
    Route,
    RouteRequest,
    WorkerView,
)
from dynamo_core.errors import ContextLengthExceeded
from dynamo_core.serving.dispatch import DispatchCounters, Dispatcher
from dynamo_core.serving.filtered_sink import filtered
from dynamo_core.serving.generation import Generation
from dynamo_core.serving.model_text import ModelText
from dynamo_core.serving.output import GenerationRequest, OutputSink
from dynamo_core.serving.prompt_encoder import PromptEncoder
from dynamo_core.serving.record import RequestRecord
from dynamo_core.serving.router_guard import RouterGuard
from dynamo_core.serving.sequence import WorkerClient
from dynamo_core.serving.sharing import ModelSharing
from dynamo_core.serving.template import ChatTemplate
from dynamo_core.serving.timeouts import Timeouts
from dynamo_core.serving.tokenizer import Tokenizer
from dynamo_core.serving.worker_feed import WorkerFeed

__all__ = ["ServedModel"]

_NO_LIMIT = 65536
"""Tokens that a request may generate when neither it nor the model sets a limit."""


class ServedModel:
    """Several workers with cards of one name. Stays known when all of them are gone: then requests fail with 503."""

    def __init__(
        self,
        card: ModelCard,
        text: ModelText,
        router: RouterGuard,
        event_plane: EventPlane,
        *,
        prompt_cache_bytes: int = 0,
        migration_limit: int = 3,
        migration_max_seq_len: int = 0,
        breaker_failures: int = 0,
        breaker_seconds: float = 5.0,
        timeouts: Timeouts | None = None,
        clock: Callable[[], float] = time.monotonic,
        open_filter: Callable[[OutputStream], OutputFilter | None] | None = None,
        sharing: ModelSharing | None = None,
    ) -> None:
        self.name = card.name
        self.card = card
        """Of the first worker."""
        self.tokenizer: Tokenizer = text.tokenizer
        self.template: ChatTemplate = text.template
        self.prompt_encoder = PromptEncoder(text.tokenizer, text.cutting, prompt_cache_bytes)
        self._eos_token_ids = text.eos_token_ids
        self._dispatcher = Dispatcher(
            card.name,
            router,
            migration_limit=migration_limit,
            migration_max_seq_len=migration_max_seq_len,
            breaker_failures=breaker_failures,
            breaker_seconds=breaker_seconds,
            sharing=sharing,
        )
        self._timeouts = timeouts or Timeouts()
        self._event_plane = event_plane
        self._clock = clock
        self.open_filter = open_filter
        """Of the active plugins; replaced when they are compiled anew."""
        self._feeds: dict[int, WorkerFeed] = {}
        self._run = secrets.token_hex(3)
        self._count = count()

    # --- what clients and operators see --------------------------------------------------------------------------------------

    @property
    def created(self) -> int:
        """Seconds since the epoch."""
        return self.card.created

    @property
    def ready(self) -> bool:
        """Somebody can take a request."""
        return bool(self._dispatcher.workers)

    @property
    def workers(self) -> Mapping[int, WorkerView]:
        return self._dispatcher.workers

    @property
    def counters(self) -> DispatchCounters:
        return self._dispatcher.counters

    @property
    def router(self) -> RouterGuard:
        return self._dispatcher.router

    @property
    def left_out(self) -> frozenset[int]:
        """Workers that get no requests for a while because they failed repeatedly."""
        return self._dispatcher.breaker.left_out()

    @property
    def waiting(self) -> int:
        """Requests that the router holds back."""
        return self._dispatcher.waiting

    # --- requests ------------------------------------------------------------------------------------------------------------

    def render_chat(self, messages: list[dict[str, Any]], /, **options: Any) -> str:
        """The prompt's text; ``options`` as :meth:`ChatTemplate.render` takes them. Encode it without special tokens."""
        return self.template.render(messages, **options)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> array[int]:
        """At once; ``prompt_encoder.encode_all`` leaves the event loop for long texts."""
        return self.prompt_encoder.encode(text, add_special_tokens)

    def limit(self, prompt_length: int, max_tokens: int | None, *, param: str = "messages") -> int:
        """The ``max_tokens`` that a request gets: what it asks for, at most what the context leaves.

        Raises :class:`~dynamo_core.errors.ContextLengthExceeded` for a prompt that leaves no room, naming ``param``.
        """
        context = self.card.context_length
        if not context:
            return _NO_LIMIT if max_tokens is None else max_tokens
        left = context - prompt_length
        if left <= 0:
            raise ContextLengthExceeded(
                f"The prompt has {prompt_length} tokens, and the model's context of {context} tokens must hold the answer, too;"
                " shorten the prompt.",
                param=param,
            )
        return left if max_tokens is None else min(max_tokens, left)

    def generate(self, request: GenerationRequest, sink: OutputSink, record: RequestRecord, context: Context) -> Generation:
        """Start it; nothing reaches the sink before this call returns.

        Raises nothing for the network or the workers: that ends in ``sink.failed``. The record gets worker ids, times and
        token counts; closing it, after the sink's last call or after killing the context, is the caller's. An output filter
        may refuse the request: that is raised.
        """
        if self.open_filter is not None:
            sink = filtered(sink, request, record, self.name, self.open_filter)
        context.deadline = self._timeouts.deadline(context.deadline)
        generation = Generation(request, sink, record, context, self.tokenizer, self._timeouts)
        record.card = self.card
        for index, choice in enumerate(generation.choices):
            prompt = request.prompts[index // request.n]
            choice.sequence = self._dispatcher.submit(
                self._route(request, prompt),
                self._engine_request(request, prompt, index % request.n),
                context,
                choice,  # pyright: ignore[reportArgumentType]  # which takes the attribute on_items for a method
            )
        generation.begin()
        return generation

    async def query(self, request: GenerationRequest) -> Route:
        """Where its first prompt would go at this moment; books nothing. Raises what the request would fail with."""
        return await self._dispatcher.query(self._route(request, request.prompts[0]))

    def wake(self) -> None:
        """Offer what the router holds again."""
        self._dispatcher.changed()

    def busy_thresholds(self) -> BusyThresholds | None:
        """``None`` for a router that has none."""
        return self.router.busy_thresholds()

    def set_busy_thresholds(self, thresholds: BusyThresholds) -> None:
        """From here on; nothing happens where the router has none."""
        self.router.tell("set_busy_thresholds", thresholds)
        self.wake()

    def _route(self, request: GenerationRequest, prompt: Sequence[int]) -> RouteRequest:
        return RouteRequest(
            id=request.id,
            token_ids=prompt,
            max_tokens=request.conditions.max_tokens,
            arrival=self._clock(),
            pinned=request.pinned,
            priority=request.priority,
            lora=request.lora,
            cache_salt=request.cache_salt,
            session=request.session,
            headers=request.headers,
            hints=request.hints,
        )

    def _engine_request(self, request: GenerationRequest, prompt: Sequence[int], choice: int) -> EngineRequest:
        sampling = request.sampling
        if choice and sampling.seed is not None:  # or all choices would be the same
            sampling = msgspec.structs.replace(sampling, seed=sampling.seed + choice)
        return EngineRequest(
            id=f"{request.id}-{self._run}{next(self._count):x}",  # a client may use one id twice
            token_ids=prompt,
            sampling=sampling,
            stop=request.conditions,
            eos_token_ids=self._eos_token_ids,
            logprobs=request.logprobs,
            priority=request.priority,
            lora=request.lora,
            cache_salt=request.cache_salt,
            dp_rank=request.hints.dp_rank,
        )

    # --- workers, told by the manager ----------------------------------------------------------------------------------------

    def add_worker(self, worker_id: int, card: ModelCard, client: WorkerClient, events: str) -> None:
        """``events``: the event address of its instance."""
        self.remove_worker(worker_id)
        worker = WorkerView(worker_id, card)
        self._dispatcher.add_worker(worker, client)
        self._feeds[worker_id] = WorkerFeed(self._event_plane, events, worker, self._dispatcher, client)

    def remove_worker(self, worker_id: int) -> None:
        feed = self._feeds.pop(worker_id, None)
        if feed is not None:
            feed.close()
            self._dispatcher.remove_worker(worker_id)

    def close(self) -> None:
        for worker_id in tuple(self._feeds):
            self.remove_worker(worker_id)
        self._dispatcher.close()
