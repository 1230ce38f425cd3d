"""``in=batch:FILE``: many requests from a file of JSON lines, their answers in another."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path
from time import monotonic
from typing import Any, BinaryIO

import msgspec

from dynamo_core.errors import DynamoError, InvalidRequest, StartupError
from dynamo_core.launcher.answer import Answer
from dynamo_core.launcher.pipeline import Pipeline

__all__ = ["BatchSummary", "output_path", "run_batch"]

_EVERY = 2.0


class BatchSummary(msgspec.Struct, frozen=True, kw_only=True):
    requests: int
    failed: int
    tokens_in: int
    tokens_out: int
    seconds: float
    ttft_p50: float
    """Seconds, as below."""
    ttft_p99: float
    latency_p50: float
    latency_p99: float

    def text(self) -> str:
        rate = self.tokens_out / self.seconds if self.seconds else 0.0
        return (
            f"{self.requests} requests ({self.failed} failed) in {self.seconds:.2f} s: {self.tokens_in} tokens in, "
            f"{self.tokens_out} out, {rate:.1f} tokens/s; first token p50 {self.ttft_p50:.3f} s, p99 {self.ttft_p99:.3f} s; "
            f"whole answer p50 {self.latency_p50:.3f} s, p99 {self.latency_p99:.3f} s"
        )


def output_path(source: Path, named: str | None) -> Path:
    """``--output``, or ``prompts.out.jsonl`` beside ``prompts.jsonl``."""
    return Path(named) if named else source.with_name(f"{source.stem}.out.jsonl")


async def run_batch(
    pipeline: Pipeline, source: Path, target: Path, *, concurrency: int, progress: Callable[[str], None] = lambda _text: None
) -> BatchSummary:
    """Answer every line of ``source`` into ``target``, in the same order, with ``concurrency`` requests at a time.

    A line is an object: ``text`` or ``prompt`` or ``messages``, and other fields of a request as the API has them. Its answer
    repeats it and adds ``response``, ``tokens_in``, ``tokens_out``, ``cached_tokens``, ``ttft_ms``, ``elapsed_ms`` and
    ``finish_reason``, or ``error``. A line that fails costs no other. Raises :class:`StartupError` for files out of reach.
    """
    began = monotonic()
    answers: list[Answer] = []
    lines = failed = 0
    told = began
    with _opened(source, "rb") as reading, _opened(target, "wb") as writing:
        async for entry, answer in _in_order(pipeline, (line for line in reading if line.strip()), concurrency):
            writing.write(msgspec.json.encode(entry) + b"\n")
            lines += 1
            if answer is None:
                failed += 1
            else:
                answers.append(answer)
            if monotonic() - told >= _EVERY:
                told = monotonic()
                progress(f"{lines} answered")
    first = [answer.ttft for answer in answers if answer.ttft is not None]
    whole = [answer.duration for answer in answers]
    return BatchSummary(
        requests=lines,
        failed=failed,
        tokens_in=sum(answer.prompt_tokens for answer in answers),
        tokens_out=sum(answer.output_tokens for answer in answers),
        seconds=monotonic() - began,
        ttft_p50=_percentile(first, 0.5),
        ttft_p99=_percentile(first, 0.99),
        latency_p50=_percentile(whole, 0.5),
        latency_p99=_percentile(whole, 0.99),
    )


_Pair = tuple[dict[str, Any], Answer | None]


async def _in_order(pipeline: Pipeline, lines: Iterable[bytes], concurrency: int) -> AsyncIterator[_Pair]:
    """A window of requests: the oldest is waited for, so that memory holds no more than the window."""
    free = asyncio.Semaphore(concurrency)
    window: list[asyncio.Task[_Pair]] = []

    async def answer(line: bytes) -> _Pair:
        try:
            return await _answered(pipeline, line)
        finally:
            free.release()

    try:
        for line in lines:
            await free.acquire()
            window.append(asyncio.create_task(answer(line)))
            while window and (window[0].done() or len(window) >= 4 * concurrency):
                yield await window.pop(0)
        while window:
            yield await window.pop(0)
    finally:
        for task in window:
            task.cancel()
        await asyncio.gather(*window, return_exceptions=True)


async def _answered(pipeline: Pipeline, line: bytes) -> _Pair:
    entry: dict[str, Any] = {}
    try:
        try:
            entry = msgspec.json.decode(line, type=dict[str, Any])
        except msgspec.DecodeError:
            entry = {"line": line.decode(errors="replace").rstrip("\n")}
            raise InvalidRequest("The line is no JSON object.") from None
        fields = {name: value for name, value in entry.items() if name != "id"}
        if "text" in fields:
            fields["prompt"] = fields.pop("text")
        if "prompt" not in fields and "messages" not in fields:
            raise InvalidRequest("The line has neither text nor prompt nor messages.")
        answer = await pipeline.ask(fields)
    except DynamoError as error:
        return {**entry, "error": error.message}, None
    told = {
        "response": answer.text,
        "tokens_in": answer.prompt_tokens,
        "tokens_out": answer.output_tokens,
        "cached_tokens": answer.cached_tokens,
        "ttft_ms": None if answer.ttft is None else round(answer.ttft * 1000, 2),
        "elapsed_ms": round(answer.duration * 1000, 2),
        "finish_reason": answer.finish_reason,
    }
    return {**entry, **told}, answer


def _opened(path: Path, mode: str) -> BinaryIO:
    try:
        return path.open(mode)  # type: ignore[return-value]  # both modes are binary
    except OSError as error:
        verb = "read" if mode == "rb" else "written"
        hint = "name another with in=batch:FILE." if mode == "rb" else "name another with --output."
        raise StartupError(f"The batch file {path} cannot be {verb} ({(error.strerror or str(error)).lower()}): {hint}") from None


def _percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))] if values else 0.0
