"""The engine contract: token ids in, token ids out.

The smallest engine is one async generator::

    class Reverse:
        def __init__(self, config, context): self.context = context
        async def start(self): return EngineInfo(context_length=4096)
        async def generate(self, request, context):
            for token in reversed(request.token_ids):
                yield EngineChunk((token,))
            yield EngineChunk((), finish_reason="stop")
        async def stop(self): pass

Engines that advance many sequences a step implement :class:`StepEngine` as well and emit into a sink, without a task a stream.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any, Literal, Protocol, runtime_checkable

import msgspec

from dynamo_core.contracts.context import Context
from dynamo_core.contracts.model_card import Resume, Role

__all__ = [
    "Engine",
    "EngineChunk",
    "EngineContext",
    "EngineInfo",
    "EngineLoad",
    "EngineRequest",
    "EngineSink",
    "FinishReason",
    "SamplingParams",
    "StepEngine",
    "StopConditions",
    "TokenLogprob",
]

FinishReason = Literal["stop", "length", "cancelled", "error", "content_filter", "tool_calls"]


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """``None`` means: the engine's own default. Ranges are checked before the engine sees them."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[int, float] | None = None
    seed: int | None = None
    guided: dict[str, Any] | None = None
    """Structured output: one of ``json``, ``regex``, ``choice``, ``grammar`` with its value."""


class StopConditions(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """When a sequence ends. Stop *strings* are the frontend's work (it has the text) and do not reach the engine."""

    max_tokens: int = 16
    """Always set, and at most what the context leaves."""
    min_tokens: int = 0
    ignore_eos: bool = False
    stop_token_ids: tuple[int, ...] = ()
    """Besides the model's own end-of-sequence ids."""


class EngineRequest(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One sequence to generate. ``n > 1`` reaches engines as n requests."""

    id: str
    """Unique among the running requests of this engine."""
    token_ids: Sequence[int]
    sampling: SamplingParams = SamplingParams()
    stop: StopConditions = StopConditions()
    eos_token_ids: tuple[int, ...] = ()
    logprobs: int | None = None
    """``None``: no log-probabilities; k: of the chosen token and the k best."""
    prompt_logprobs: int | None = None
    priority: int = 0
    """Lower runs first."""
    lora: str | None = None
    cache_salt: str | None = None
    dp_rank: int | None = None
    """The data-parallel rank that the router chose; ``None`` leaves it to the engine."""
    extra: dict[str, Any] = {}
    """For one kind of engine only; others ignore it."""


class TokenLogprob(msgspec.Struct, frozen=True, array_like=True):
    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()
    """The best alternatives as (token id, log-probability), best first."""


class EngineChunk(msgspec.Struct, frozen=True, omit_defaults=True):
    """Some new tokens of one sequence. The chunk with a ``finish_reason`` is the last."""

    token_ids: Sequence[int] = ()
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    """The stop token that ended the sequence, if any. It is not among ``token_ids``."""
    cached_tokens: int | None = None
    """Prompt tokens found in the prefix cache; on the first chunk."""
    logprobs: tuple[TokenLogprob, ...] | None = None
    """One entry a token id."""
    error: str | None = None
    """With ``finish_reason == "error"``."""


class EngineInfo(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What an engine knows about itself once started; becomes part of the model card."""

    context_length: int = 0
    block_size: int = 0
    total_kv_blocks: int = 0
    max_num_seqs: int = 0
    max_num_batched_tokens: int = 0
    kv_events: bool = False
    data_parallel_size: int = 1
    resume: dict[str, Resume] = {}
    """How the engine continues a stream whose generated tokens come as prompt, by what the request uses: ``penalties``,
    ``guided``, ``min_tokens``, ``logit_bias``, ``seed`` and ``prompt_logprobs``. What is left out is as for most engines."""
    extra: dict[str, Any] = {}


class EngineLoad(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A reading of the engine's queues, published about once a second and whenever it changes much."""

    running: int = 0
    waiting: int = 0
    kv_used_blocks: int = 0
    kv_total_blocks: int = 0
    prefill_tokens: int = 0
    """Prompt tokens admitted or waiting and not yet computed."""


class EngineContext(msgspec.Struct, frozen=True, kw_only=True):
    """What the worker hands to an engine's factory. Keep it; call ``publish_*`` from the event loop's thread only."""

    model_path: str
    model_name: str
    worker_id: int
    role: Role = Role.AGGREGATED
    args: Mapping[str, Any] = {}
    """``--engine-arg`` pairs and the ``[engine_args]`` table, values already parsed (int, float, bool, str, list, table)."""
    run_dir: str = ""
    """A private folder that exists for this worker's life, for sockets and scratch files."""
    context_length: int | None = None
    """The operator's limit on prompt and output together, so that an engine need not plan for more; ``None``: the model's own."""
    cpu_cores: tuple[int, ...] = ()
    """Cores set aside for this worker; empty: no preference."""
    publish_kv_events: Callable[..., None] = lambda *_: None
    """``(events: Sequence[KvEvent], dp_rank: int = 0)``: tell routers what one step changed in the prefix cache, of that
    data-parallel rank. Never blocks."""
    on_fatal: Callable[[str], None] = lambda _: None
    """The engine is dead and cannot serve again: the worker logs the sentence and exits, so that it is started anew."""


class EngineSink(Protocol):
    """Where a :class:`StepEngine` emits one sequence. Calls cost under a microsecond and never block or raise.

    Everything emitted within one turn of the event loop leaves the process as one frame.
    """

    def token(self, token_id: int) -> None:
        """One more token, and nothing else to say about it."""
        ...

    def chunk(self, chunk: EngineChunk) -> None:
        """Anything richer. A chunk with a ``finish_reason`` ends the sequence; nothing may follow."""
        ...


@runtime_checkable
class Engine(Protocol):
    """Made by an :class:`~dynamo_core.specs.EngineSpec` factory, then driven by one worker on its event loop."""

    def start(self) -> Awaitable[EngineInfo]:
        """Load the model. Called once. An exception ends the worker with its message."""
        ...

    def generate(self, request: EngineRequest, context: Context) -> AsyncIterator[EngineChunk]:
        """One sequence. Ends after a chunk with a ``finish_reason``.

        When the context is stopped or killed the engine frees the sequence within one step; closing the generator means the same.
        """
        ...

    def stop(self) -> Awaitable[None]:
        """Free everything. Called once, also after a failed start; running sequences may be dropped."""
        ...

    # Optional, looked up once after start:
    #   async def drain(self) -> None                   finish what runs; new requests are not sent any more
    #   def load(self) -> EngineLoad                    a reading, cheap, from the event loop
    #   def metrics(self) -> bytes                      Prometheus text of the engine's own series, from a worker thread
    #   def health_payload(self) -> EngineRequest       a canary request
    #   async def clear_cache(self) -> None             drop the prefix cache
    #   async def sleep(self) -> None                   free what an idle worker can spare; nothing runs
    #   async def wake(self) -> None                    undo it; requests follow


@runtime_checkable
class StepEngine(Engine, Protocol):
    """An engine that advances all sequences together and needs no task for each."""

    def submit(self, request: EngineRequest, sink: EngineSink, context: Context) -> None:
        """Queue one sequence; emit into ``sink`` from the event loop's thread until a finish reason was emitted.

        Watch ``context.on_cancel`` (or ``context.is_stopped()`` each step); a cancelled sequence ends with ``"cancelled"``.
        """
        ...
