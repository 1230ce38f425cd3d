"""vLLM as an engine: :class:`VllmEngine`."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import multiprocessing
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any

from dynamo_core.contracts import (
    Context,
    EngineChunk,
    EngineContext,
    EngineInfo,
    EngineLoad,
    EngineRequest,
    EngineSink,
    SamplingParams,
    StopConditions,
)
from dynamo_core.errors import EngineError, EngineShutdown, InvalidRequest, Overloaded, StartupError
from dynamo_core.kv.events import VllmEventTranslator
from dynamo_vllm.args import (
    Addresses,
    changed_environment,
    engine_arguments,
    environment,
    event_addresses,
    one_sentence,
    run_folder,
)
from dynamo_vllm.core_output import CoreOutput
from dynamo_vllm.kv_events import KvEventFeed
from dynamo_vllm.metrics import SchedulerReading, vllm_metrics
from dynamo_vllm.sampling import SamplingMapper, invalid
from dynamo_vllm.steps import shorten
from dynamo_vllm.stream import Stream

__all__ = ["TRIED_VERSIONS", "VllmEngine"]

_log = logging.getLogger(__name__)

TRIED_VERSIONS = ("0.24", "0.32")
_WARM_UP_TOKENS = 2
_TAIL = 12
_POLL_SECONDS = 0.2
_SHUTDOWN_SECONDS = 2.0
"""Nothing runs any more when it begins; a CPU worker takes 4 s to tear itself down, and is killed instead."""


class VllmEngine:
    """A :class:`~dynamo_core.contracts.StepEngine` on vLLM's ``AsyncLLM``. Owned by one event loop; ``metrics`` is thread-safe.

    The engine core runs in a process of its own. Requests enter by vLLM's input processor and leave by its output processor, in
    which each of our streams stands as the collector of its sequence; plain tokens take a shorter way (:mod:`dynamo_vllm.steps`).
    """

    def __init__(self, _config: Any, context: EngineContext) -> None:
        self._context = context
        self._llm: Any = None
        self._made: Any = None
        """What the starting thread leaves; a result would stay referenced by its executor."""
        self._boot: asyncio.Future[None] | None = None
        self._output: CoreOutput | None = None
        self._environment = contextlib.ExitStack()
        self._feed: KvEventFeed | None = None
        self._reading: Any = SchedulerReading()
        self._sampling: SamplingMapper | None = None
        self._tokens_input: Callable[..., Any] | None = None
        self._refusals: tuple[type[BaseException], ...] = (ValueError, TypeError)
        self._tasks_supported: Any = None
        self._streams: dict[str, Stream] = {}
        self._sending: set[asyncio.Task[None]] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._prefill_tokens = 0
        self._first_token_id = 1
        self._others: frozenset[int | None] = frozenset()
        """Processes that this one had started before vLLM's."""
        self._stopping = False
        self._dead = False

    # --- life ----------------------------------------------------------------------------------------------------------------

    async def start(self) -> EngineInfo:
        folder = run_folder(self._context)
        self._output = CoreOutput(folder / "vllm-output", verbose=_log.isEnabledFor(logging.DEBUG))
        addresses = event_addresses(self._context, folder)
        if addresses is None:
            _log.info(
                "vLLM publishes no KV events: its prefix cache is off, it has several ranks, or its events are switched off"
            )
        self._boot = asyncio.ensure_future(asyncio.to_thread(self._construct, addresses, self._output.path))
        try:
            await asyncio.shield(self._boot)
            self._llm, self._made = self._made, None
            await self._warm_up()
        except asyncio.CancelledError:
            raise
        except StartupError:
            raise
        except Exception as error:
            await asyncio.sleep(0.2)  # what the processes said last is on its way
            raise StartupError(self._obituary(error)) from error
        self._output.started()
        self._llm.output_handler.add_done_callback(lambda _: self._core_ended())
        config = self._llm.vllm_config
        block_size = config.cache_config.block_size
        if addresses is not None:
            self._feed = KvEventFeed(addresses, VllmEventTranslator(block_size), self._context.publish_kv_events)
            try:
                await self._feed.start()
            except TimeoutError as error:
                raise StartupError(f"vLLM's KV events cannot be had at {addresses.replay}: nobody answers there.") from error
        return EngineInfo(
            context_length=config.model_config.max_model_len,
            block_size=block_size,
            total_kv_blocks=config.cache_config.num_gpu_blocks or 0,
            max_num_seqs=config.scheduler_config.max_num_seqs,
            max_num_batched_tokens=config.scheduler_config.max_num_batched_tokens,
            kv_events=addresses is not None,
            data_parallel_size=config.parallel_config.data_parallel_size,
            resume={"penalties": "none", "guided": "none", "prompt_logprobs": "none", "seed": "greedy-only"},
            extra={"vllm_version": _version()},
        )

    async def drain(self) -> None:
        """Until nothing runs."""
        await self._idle.wait()

    async def stop(self) -> None:
        self._stopping = True
        boot = self._boot
        while boot is not None and not boot.done():
            self._end_children()  # the thread that waits for them then gives up
            await asyncio.wait([boot], timeout=_POLL_SECONDS)
        for task in self._sending:
            task.cancel()
        await asyncio.gather(*self._sending, return_exceptions=True)
        for stream in tuple(self._streams.values()):
            stream.cancelled()
        if self._feed is not None:
            await self._feed.close()
        llm, self._llm, self._made = self._llm or self._made, None, None
        if llm is not None:
            handler = getattr(llm, "output_handler", None)
            await asyncio.to_thread(llm.shutdown, _SHUTDOWN_SECONDS)
            if handler is not None:
                await asyncio.wait([handler], timeout=5.0)
            llm = None
            # AsyncLLM is part of cycles, and its finalizer fails at the interpreter's end. (After a failed start nothing is
            # collected: a finalizer of vLLM's may then wait for ever.)
            await asyncio.to_thread(gc.collect)
        if self._output is not None:
            await asyncio.to_thread(self._output.close)
        self._environment.close()

    async def clear_cache(self) -> None:
        """Raises :class:`~dynamo_core.errors.EngineError` while sequences hold blocks."""
        if not await self._llm.reset_prefix_cache():
            raise EngineError("vLLM keeps its prefix cache while requests run; drain the worker first.")
        await self._step()  # vLLM tells of it with its next step

    async def sleep(self) -> None:
        """Empty the cache; where ``enable_sleep_mode`` was given, which needs a GPU, free its memory and that of the weights."""
        await self.clear_cache()
        if self._llm.vllm_config.model_config.enable_sleep_mode:
            await self._llm.sleep(level=1)
        else:
            _log.warning("vLLM keeps its memory while it sleeps: start it with --engine-arg enable_sleep_mode=true to free it")

    async def wake(self) -> None:
        if self._llm.vllm_config.model_config.enable_sleep_mode:
            await self._llm.wake_up()

    def load(self) -> EngineLoad:
        """vLLM's reading of its last step; it takes none when it goes idle, so that our own count decides."""
        live = len(self._streams)
        total = self._llm.vllm_config.cache_config.num_gpu_blocks or 0
        waiting = min(self._reading.waiting, live)
        return EngineLoad(
            running=live - waiting,
            waiting=waiting,
            kv_used_blocks=round(self._reading.kv_usage * total) if live else 0,
            kv_total_blocks=total,
            prefill_tokens=self._prefill_tokens,
        )

    def metrics(self) -> bytes:
        return vllm_metrics()

    def health_payload(self) -> EngineRequest:
        return EngineRequest(id="health", token_ids=(self._first_token_id,), stop=StopConditions(max_tokens=1, ignore_eos=True))

    # --- requests ------------------------------------------------------------------------------------------------------------

    def submit(self, request: EngineRequest, sink: EngineSink, context: Context) -> None:
        """Raises :class:`~dynamo_core.errors.InvalidRequest` for what vLLM does not accept."""
        stream = Stream(request, sink, self)
        sent = self._admit(request, stream)
        self._streams[stream.request_id] = stream
        self._prefill_tokens += stream.prompt_tokens
        self._idle.clear()
        self._send(self._deliver(sent, stream))
        stream.unregister = context.on_cancel(lambda _killed: self._abort(stream))
        if stream.done:
            stream.unregister()

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

    def _admit(self, request: EngineRequest, stream: Stream) -> Coroutine[Any, Any, None]:
        """Check the request and enter it in vLLM's books on this side. Returns what sends it to the engine core."""
        llm = self._llm
        if self._dead or self._stopping:
            raise EngineShutdown("vLLM's engine core has ended.")
        assert self._sampling is not None  # noqa: S101  # for the type checker: set by start
        assert self._tokens_input is not None  # noqa: S101
        if request.lora is not None:
            raise InvalidRequest(f"This worker has no adapter {request.lora!r}.", param="model", code="model_not_found")
        params = self._sampling(request)
        prompt = self._tokens_input(list(request.token_ids), cache_salt=request.cache_salt)
        try:
            checked = llm.input_processor.process_inputs(
                request.id,
                prompt,
                params,
                supported_tasks=self._tasks_supported,
                priority=request.priority,
                data_parallel_rank=request.dp_rank,
            )
        except self._refusals as error:
            raise invalid(error) from error
        admission = getattr(llm, "check_admission", None)
        if admission is not None:
            try:
                admission(request_id=request.id)
            except Exception as error:
                raise Overloaded(str(error), retry_after=1.0) from error
        llm.input_processor.assign_request_id(checked)
        stream.request_id = checked.request_id
        llm.output_processor.add_request(checked, None, None, 0, stream)
        sent: Coroutine[Any, Any, None] = llm.engine_core.add_request_async(checked)
        return sent

    async def _deliver(self, sent: Coroutine[Any, Any, None], stream: Stream) -> None:
        try:
            await sent
        except Exception as error:  # noqa: BLE001  # whatever it is, the stream must not wait for ever
            stream.failed(error)

    def _abort(self, stream: Stream) -> None:
        """Also called a second time, when a kill follows a stop."""
        if not stream.done and not self._dead:
            self._send(self._llm.abort(stream.request_id, internal=True))

    def _send(self, sending: Coroutine[Any, Any, None]) -> None:
        """In the order of the calls: each of them writes to the socket before it first waits."""
        task = asyncio.get_running_loop().create_task(sending)
        self._sending.add(task)
        task.add_done_callback(self._sent)

    def _sent(self, task: asyncio.Task[None]) -> None:
        self._sending.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None and not self.died(error):
            _log.error("vLLM did not take an abort", exc_info=error)

    # --- what streams tell (StreamOwner) -------------------------------------------------------------------------------------

    def first_token(self, stream: Stream) -> None:
        self._prefill_tokens -= stream.prompt_tokens

    def ended(self, stream: Stream) -> None:
        if self._streams.pop(stream.request_id, None) is not None and stream.prefilling:
            self._prefill_tokens -= stream.prompt_tokens
        if not self._streams:
            self._idle.set()

    def died(self, error: BaseException) -> bool:
        if type(error).__name__ != "EngineDeadError" and not (self._llm is not None and self._llm.errored):
            return False
        if not self._dead and not self._stopping:
            self._dead = True
            self._context.on_fatal(self._obituary(error))
        return True

    def _core_ended(self) -> None:
        """vLLM's output handler returned, which it does only when the engine core is gone."""
        if not self._dead and not self._stopping:
            self._dead = True
            self._context.on_fatal(self._obituary(None))
        for stream in tuple(self._streams.values()):
            stream.failed(RuntimeError("vLLM's engine core has ended"))

    def _obituary(self, error: BaseException | None) -> str:
        output = self._output
        cause = output.cause() if output is not None else None
        if self._llm is None:
            what = f"vLLM did not start: {cause or (one_sentence(error) if error is not None else 'no reason is known')}"
        else:
            what = f"vLLM's engine core has ended{f': {cause}' if cause else ' without a word'}"
        tail = [line for line in output.tail(_TAIL) if cause is None or cause not in line] if output is not None else []
        return what + (("\nIts last lines:\n  " + "\n  ".join(tail)) if tail else "")

    # --- start ---------------------------------------------------------------------------------------------------------------

    def _change(self, variables: Mapping[str, str]) -> None:
        """The environment, until :meth:`stop`."""
        self._environment.enter_context(changed_environment(variables))

    def _end_children(self) -> None:
        for child in multiprocessing.active_children():
            if child.pid not in self._others:
                child.kill()

    def _construct(self, addresses: Addresses | None, output: Path) -> None:
        """In a thread: imports vLLM (8 to 30 s) and starts its processes, while the event loop keeps the worker's leases."""
        verbose = _log.isEnabledFor(logging.DEBUG)
        self._change(environment(self._context, {}, cpu=False, verbose=verbose))
        _log_through_ours()
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.platforms import current_platform
        from vllm.usage.usage_lib import UsageContext
        from vllm.v1.engine.async_llm import AsyncLLM

        version = _version()
        if not version.startswith(tuple(f"{tried}." for tried in TRIED_VERSIONS)):
            _log.warning("vLLM %s is untried with this plugin; tried are %s", version, " and ".join(TRIED_VERSIONS))
        cpu = bool(current_platform.is_cpu())
        arguments = engine_arguments(AsyncEngineArgs, self._context, addresses, cpu=cpu)
        self._change(environment(self._context, arguments, cpu=cpu, output=output, verbose=verbose))
        try:
            # By this vLLM chooses how many sequences and tokens make a batch: on a large GPU 1024 and 8192 for a server, and 128
            # and 2048 if it is not told.
            config = AsyncEngineArgs(**arguments).create_engine_config(UsageContext.OPENAI_API_SERVER)
        except Exception as error:
            raise StartupError(f"vLLM does not accept its arguments: {one_sentence(error)}") from error
        if self._stopping:
            raise StartupError("vLLM was stopped while it started.")
        _log_through_ours()  # importing vLLM and making a configuration set its own handlers, and so does starting the engine
        self._others = frozenset(child.pid for child in multiprocessing.active_children())
        # No name of this frame may hold it: exceptions that vLLM's imports caught keep the frame.
        self._made = AsyncLLM.from_vllm_config(config, stat_loggers=[self._reading])
        if not shorten(self._made):
            _log.info(
                "vLLM %s is not built as the tried ones are; its output processor makes the long way of every token", version
            )
        _log_through_ours()

    async def _warm_up(self) -> None:
        """What does not work fails now, and vLLM's output handler runs afterwards."""
        from vllm.envs import disable_envs_cache, enable_envs_cache
        from vllm.exceptions import VLLMValidationError
        from vllm.inputs.engine import tokens_input

        llm, model = self._llm, self._llm.model_config
        self._tokens_input = tokens_input
        self._refusals = (VLLMValidationError, ValueError, TypeError)
        self._tasks_supported = await llm.get_supported_tasks()
        self._sampling = SamplingMapper(model.get_diff_sampling_param(), guided=not model.skip_tokenizer_init)
        self._first_token_id = _bos(model)
        await self._step()
        enable_envs_cache()  # vLLM looks at its environment for every token, 1.8 µs of the 6.4 that it takes in this process
        self._environment.callback(disable_envs_cache)

    async def _step(self) -> None:
        """A few tokens, through vLLM's own front door."""
        assert self._sampling is not None  # noqa: S101  # for the type checker: set by start
        assert self._tokens_input is not None  # noqa: S101
        request = EngineRequest(
            id="step",
            token_ids=(self._first_token_id,),
            sampling=SamplingParams(temperature=0.0),
            stop=StopConditions(max_tokens=_WARM_UP_TOKENS, ignore_eos=True),
        )
        prompt = self._tokens_input(list(request.token_ids))
        async for _ in self._llm.generate(prompt, self._sampling(request), request_id=request.id):
            pass


class _Queue(asyncio.Queue[EngineChunk]):
    """A sink for those who read chunks; holds at most the request's ``max_tokens``."""

    def token(self, token_id: int) -> None:
        self.put_nowait(EngineChunk((token_id,)))

    def chunk(self, chunk: EngineChunk) -> None:
        self.put_nowait(chunk)


def _version() -> str:
    import vllm

    return str(vllm.__version__)


def _bos(model: Any) -> int:
    """A token that every prompt may begin with."""
    text = model.hf_config.get_text_config()
    bos = getattr(text, "bos_token_id", None)
    return bos if isinstance(bos, int) else 1


def _log_through_ours() -> None:
    """vLLM's records of this process go where ours go, and not to its own handler on standard output."""
    logger = logging.getLogger("vllm")
    logger.handlers.clear()
    logger.propagate = True
    logger.setLevel(logging.NOTSET if _log.isEnabledFor(logging.DEBUG) else logging.ERROR)
