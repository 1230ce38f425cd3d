"""``POST /v1/chat/completions``."""

from __future__ import annotations

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
from dynamo_core.http.openai.formats import ChatBody, ChatChunks
from dynamo_core.http.openai.route_query import answer_query, is_query
from dynamo_core.http.openai.service import OpenAiService, Wish
from dynamo_core.http.openai.types import ChatCompletion, ChatCompletionRequest
from dynamo_core.serving.served_model import ServedModel

__all__ = ["CHAT_PATH", "chat_route"]

CHAT_PATH = "/v1/chat/completions"


def chat_route(service: OpenAiService, defaults: Mapping[str, Any] = {}) -> HTTPRouteHandler:
    @post(
        CHAT_PATH,
        status_code=200,
        dto=json_body(with_defaults(ChatCompletionRequest, defaults)),
        return_dto=None,
        tags=["OpenAI"],
        summary="Chat completion",
        description="The model's answer to a conversation: one JSON object, or server-sent events with `stream`.",
        operation_id="createChatCompletion",
        responses={200: ResponseSpec(ChatCompletion, generate_examples=False, description="The completion."),
                   400: ResponseSpec(ErrorBody, generate_examples=False, description="The request is at fault.")},
    )  # fmt: skip
    async def create_chat_completion(data: Annotated[ChatCompletionRequest, Body()], scope: Scope) -> ASGIApp:
        exchange = exchange_of(scope)
        served = service.admit(exchange, data)
        _check(data)
        text = _render(served, data)
        prompts = await served.prompt_encoder.encode_all((text,), add_special_tokens=False)
        completion_tokens = data.max_completion_tokens is not None
        wish = Wish(
            endpoint="chat",
            prompt_param="messages",
            tokens_param="max_completion_tokens" if completion_tokens else "max_tokens",
            max_tokens=data.max_completion_tokens if completion_tokens else data.max_tokens,
            logprobs=(data.top_logprobs or 0) if data.logprobs else None,
        )
        request = await service.request(exchange, served, data, prompts, wish)
        if is_query(data):
            return await answer_query(exchange, served, request, data)
        heading = service.heading(exchange, "chatcmpl", data.model)
        stats = service.stats(data)
        if stats is None:
            return service.unary(exchange, served, request, ChatBody(heading, bool(data.logprobs)))
        return service.stream(exchange, served, request, ChatChunks(heading, request.n, stats), stats)

    return create_chat_completion


def _render(served: ServedModel, data: ChatCompletionRequest) -> str:
    options = dict(data.chat_template_kwargs or {})
    if data.add_generation_prompt is not None:
        options["add_generation_prompt"] = data.add_generation_prompt
    if data.tools and data.tool_choice != "none":
        options["tools"] = data.tools
    return served.render_chat(data.messages, **options)


def _check(data: ChatCompletionRequest) -> None:
    if data.top_logprobs is not None and not data.logprobs:
        raise _invalid("top_logprobs", "`top_logprobs` needs `logprobs` to be true.")
    for index, message in enumerate(data.messages):
        role, content = message.get("role"), message.get("content")
        if not isinstance(role, str) or not role:
            raise _invalid(f"messages[{index}].role", f"`messages[{index}].role` must be a string, such as user or assistant.")
        if isinstance(content, list):
            _check_parts(content, f"messages[{index}].content")
        elif not isinstance(content, str | None):
            where = f"messages[{index}].content"
            raise _invalid(where, f"`{where}` must be a string, an array of parts or null.", "invalid_type")
        elif content is None and role == "user":
            raise _invalid(
                f"messages[{index}].content", f"`messages[{index}].content` is required.", "missing_required_parameter"
            )


def _check_parts(parts: Sequence[Any], where: str) -> None:
    for index, part in enumerate(parts):
        kind = part.get("type") if isinstance(part, dict) else None
        if not isinstance(kind, str):
            raise _invalid(f"{where}[{index}]", f"`{where}[{index}]` must be an object with a `type`.", "invalid_type")
        if kind == "text" and not isinstance(part.get("text"), str):
            raise _invalid(f"{where}[{index}].text", f"`{where}[{index}].text` must be a string.", "invalid_type")


def _invalid(param: str, message: str, code: str = "invalid_value") -> InvalidRequest:
    return InvalidRequest(message, param=param, code=code)
