"""``POST /v1/completions``."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from litestar import post
from litestar.handlers import HTTPRouteHandler
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import Body
from litestar.types import ASGIApp, Scope

from dynamo_core.errors import InvalidRequest
from dynamo_core.http.body import json_body
from dynamo_core.http.errors import ErrorBody
from dynamo_core.http.exchange import exchange_of
from dynamo_core.http.openai.defaults import with_defaults
from dynamo_core.http.openai.formats import CompletionBody, CompletionChunks
from dynamo_core.http.openai.route_query import answer_query, is_query
from dynamo_core.http.openai.service import OpenAiService, Wish
from dynamo_core.http.openai.types import Completion, CompletionRequest, Prompt
from dynamo_core.serving.served_model import ServedModel

__all__ = ["COMPLETIONS_PATH", "completions_route"]

COMPLETIONS_PATH = "/v1/completions"

_DEFAULT_MAX_TOKENS = 16
"""OpenAI's."""


def completions_route(service: OpenAiService, defaults: Mapping[str, Any] = {}) -> HTTPRouteHandler:
    @post(
        COMPLETIONS_PATH,
        status_code=200,
        dto=json_body(with_defaults(CompletionRequest, defaults)),
        return_dto=None,
        tags=["OpenAI"],
        summary="Completion",
        description="Text that continues each prompt: one JSON object, or server-sent events with `stream`.",
        operation_id="createCompletion",
        responses={200: ResponseSpec(Completion, generate_examples=False, description="The completion."),
                   400: ResponseSpec(ErrorBody, generate_examples=False, description="The request is at fault.")},
    )  # fmt: skip
    async def create_completion(data: Annotated[CompletionRequest, Body()], scope: Scope) -> ASGIApp:
        exchange = exchange_of(scope)
        served = service.admit(exchange, data)
        _check(data)
        prompts = await _prompts(served, data)
        wish = Wish(
            endpoint="completions",
            prompt_param="prompt",
            max_tokens=_DEFAULT_MAX_TOKENS if data.max_tokens is None else data.max_tokens,
            logprobs=data.logprobs,
        )
        request = await service.request(exchange, served, data, prompts, wish)
        if is_query(data):
            return await answer_query(exchange, served, request, data)
        heading = service.heading(exchange, "cmpl", data.model)
        echo = _echo(served, data, prompts, request.n)
        stats = service.stats(data)
        if stats is None:
            return service.unary(exchange, served, request, CompletionBody(heading, data.logprobs is not None, echo))
        chunks = CompletionChunks(heading, len(prompts) * request.n, stats, echo)
        return service.stream(exchange, served, request, chunks, stats)

    return create_completion


def _check(data: CompletionRequest) -> None:
    if data.suffix:
        raise _invalid("suffix", "`suffix` is not supported; leave it out.")
    if data.best_of is not None and data.best_of != (data.n or 1):
        raise _invalid("best_of", "`best_of` must be the same as `n`, or be left out.")
    if data.echo and data.logprobs is not None:
        raise _invalid("logprobs", "`logprobs` of the prompt are not supported; leave out `echo` or `logprobs`.")


async def _prompts(served: ServedModel, data: CompletionRequest) -> tuple[array[int], ...]:
    texts = _texts(data.prompt)
    if texts:
        return await served.prompt_encoder.encode_all(texts, add_special_tokens=data.add_special_tokens is not False)
    lists = _token_lists(data.prompt)
    vocabulary = served.tokenizer.vocab_size
    for ids in lists:
        if ids and max(ids) >= vocabulary:
            raise _invalid("prompt", f"`prompt` has the token id {max(ids)}, but the model knows ids below {vocabulary} only.")
    return tuple(array("I", ids) for ids in lists)


def _texts(prompt: Prompt) -> list[str]:
    """The prompts that are text; empty when they are token ids."""
    if isinstance(prompt, str):
        return [prompt]
    texts = [item for item in prompt if isinstance(item, str)]
    return texts if len(texts) == len(prompt) else []


def _token_lists(prompt: Prompt) -> list[list[int]]:
    if not prompt:
        raise _invalid("prompt", "`prompt` is empty; send at least one prompt.")
    lists = [item for item in prompt if isinstance(item, list)]
    ids = [item for item in prompt if isinstance(item, int)]
    if len(ids) == len(prompt):
        return [ids]
    if len(lists) == len(prompt):
        return lists
    raise _invalid("prompt", "`prompt` must be all text, all token ids or all lists of token ids, not a mixture.")


def _echo(served: ServedModel, data: CompletionRequest, prompts: Sequence[Sequence[int]], n: int) -> list[str]:
    """The prompt's text of each choice; empty without ``echo``."""
    if not data.echo:
        return []
    texts = _texts(data.prompt) or [served.tokenizer.decode(ids, True) for ids in prompts]
    return [text for text in texts for _ in range(n)]


def _invalid(param: str, message: str) -> InvalidRequest:
    return InvalidRequest(message, param=param, code="invalid_value")
