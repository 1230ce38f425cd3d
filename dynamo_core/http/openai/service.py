"""What the generating routes share: finding the model, counting the request in, and the way into the pipeline."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Literal

import msgspec

from dynamo_core.contracts import Context
from dynamo_core.errors import InvalidRequest
from dynamo_core.http.exchange import Exchange
from dynamo_core.http.gate import Preparer, permit_model
from dynamo_core.http.observe import FrontendMetrics
from dynamo_core.http.openai.formats import Heading, UsageStats
from dynamo_core.http.openai.routing import demand_of
from dynamo_core.http.openai.sampling import MAX_CHOICES, check_fields, check_room, conditions_of, sampling_of, stops_of
from dynamo_core.http.openai.types import SamplingFields
from dynamo_core.http.reply import EndCallback, GenerationReply, SinkFactory
from dynamo_core.http.route_debug import wants_route
from dynamo_core.http.sse import ChunkFormat, EventStream
from dynamo_core.http.unary import BodyFormat, Collector
from dynamo_core.http.writer import Writer
from dynamo_core.serving.manager import ModelManager
from dynamo_core.serving.output import GenerationRequest, OutputSink
from dynamo_core.serving.record import RequestRecord
from dynamo_core.serving.served_model import ServedModel

__all__ = ["OpenAiService", "Wish"]

_TRACE_HEADERS = ("traceparent", "tracestate")


class Wish(msgspec.Struct, frozen=True, kw_only=True):
    """What is particular to one of the APIs in a request."""

    endpoint: Literal["chat", "completions"]
    prompt_param: str
    """The field that holds the prompt."""
    tokens_param: str = "max_tokens"
    max_tokens: int | None = None
    logprobs: int | None = None


class OpenAiService:
    """One per application."""

    def __init__(self, manager: ModelManager, metrics: FrontendMetrics, preparer: Preparer | None) -> None:
        self.manager = manager
        self._metrics = metrics
        self._prepare = preparer

    def admit(self, exchange: Exchange, body: SamplingFields) -> ServedModel:
        """The model that the client named. Raises what makes it a 403, a 404 or a 503."""
        record = _record_of(exchange)
        record.model = body.model
        record.stream = bool(body.stream)
        record.principal = exchange.principal
        served = self.manager.get(body.model)
        self._metrics.admitted(exchange, served.name)
        record.card = served.card
        permit_model(exchange.principal, body.model, served.name)
        check_fields(body)
        return served

    async def request(
        self, exchange: Exchange, served: ServedModel, body: SamplingFields, prompts: tuple[Sequence[int], ...], wish: Wish
    ) -> GenerationRequest:
        """The request as the pipeline takes it, checked, and changed as the plugins like."""
        n = body.n or 1
        if len(prompts) * n > MAX_CHOICES:
            raise InvalidRequest(
                f"{len(prompts)} prompts with n={n} are more than {MAX_CHOICES} choices; send fewer.", param=wish.prompt_param
            )
        headers = exchange.headers
        if wants_route(headers):
            _record_of(exchange).routes = []
        demand = demand_of(body, headers, exchange.principal)
        max_tokens = _limit(served, prompts, wish)
        request = GenerationRequest(
            id=exchange.id,
            endpoint=wish.endpoint,
            prompts=prompts,
            n=n,
            sampling=sampling_of(body),
            conditions=conditions_of(body, max_tokens),
            stop=stops_of(body),
            include_stop=bool(body.include_stop_str_in_output),
            skip_special_tokens=body.skip_special_tokens is not False,
            logprobs=wish.logprobs,
            priority=demand.priority,
            lora=served.card.lora,
            cache_salt=demand.cache_salt,
            session=demand.session,
            pinned=demand.pinned,
            headers=headers,
            hints=demand.hints,
        )
        if self._prepare is None:
            return request
        prompts, max_tokens, priority = await self._prepare(request, body, served.name, exchange.principal, exchange.id)
        changed = msgspec.structs.replace(wish, max_tokens=max_tokens)
        conditions = conditions_of(body, _limit(served, prompts, changed))
        return msgspec.structs.replace(request, prompts=prompts, conditions=conditions, priority=priority)

    def unary(self, exchange: Exchange, served: ServedModel, request: GenerationRequest, body: BodyFormat) -> GenerationReply:
        gaps = self._metrics.series(served.name).gap.observe
        choices = len(request.prompts) * request.n

        def make_sink(writer: Writer, record: RequestRecord, on_end: EndCallback) -> OutputSink:
            return Collector(body, choices, writer, record, on_end, gaps)

        return self._reply(exchange, served, request, make_sink)

    def stream(
        self, exchange: Exchange, served: ServedModel, request: GenerationRequest, chunks: ChunkFormat, stats: UsageStats
    ) -> GenerationReply:
        gaps = self._metrics.series(served.name).gap.observe

        def make_sink(writer: Writer, record: RequestRecord, on_end: EndCallback) -> OutputSink:
            return EventStream(chunks, writer, record, on_end, gaps)

        reply = self._reply(exchange, served, request, make_sink)
        if stats.continuous:
            reply.begun = lambda generation: setattr(stats, "current", generation.usage)
        return reply

    def _reply(
        self, exchange: Exchange, served: ServedModel, request: GenerationRequest, make_sink: SinkFactory
    ) -> GenerationReply:
        trace = {name: value for name in _TRACE_HEADERS if (value := exchange.headers.get(name)) is not None}
        context = Context(exchange.id, trace_headers={**trace, "x-request-id": exchange.id})
        return GenerationReply(exchange, _record_of(exchange), context, served.generate, request, make_sink)

    @staticmethod
    def heading(exchange: Exchange, prefix: str, model: str) -> Heading:
        return Heading(f"{prefix}-{exchange.id}", int(time.time()), model)

    @staticmethod
    def stats(body: SamplingFields) -> UsageStats | None:
        """``None`` for a unary answer."""
        if not body.stream:
            return None
        options = body.stream_options
        if options is None:
            return UsageStats()
        return UsageStats(bool(options.include_usage), bool(options.include_usage and options.continuous_usage_stats))


def _limit(served: ServedModel, prompts: Sequence[Sequence[int]], wish: Wish) -> int:
    """``max_tokens`` for all prompts: the least that one of them leaves."""
    context_length = served.card.context_length
    tightest: int | None = None
    for prompt in prompts:
        if not prompt:
            raise InvalidRequest(f"`{wish.prompt_param}` has no tokens; send some text.", param=wish.prompt_param)
        check_room(wish.tokens_param, wish.max_tokens, len(prompt), context_length)
        limit = served.limit(len(prompt), wish.max_tokens, param=wish.prompt_param)
        tightest = limit if tightest is None else min(tightest, limit)
    if tightest is None:
        raise InvalidRequest(f"`{wish.prompt_param}` is empty; send at least one prompt.", param=wish.prompt_param)
    return tightest


def _record_of(exchange: Exchange) -> RequestRecord:
    if exchange.record is None:
        message = "a generating route is not among the exchange layer's endpoints"
        raise RuntimeError(message)
    return exchange.record
