"""``nvext.annotations: ["query_instance_id"]``: which worker would take a request, asked without sending it there."""

from __future__ import annotations

from typing import Any

import msgspec
from litestar.enums import MediaType
from litestar.response.base import ASGIResponse
from litestar.types import ASGIApp

from dynamo_core.http.exchange import Exchange
from dynamo_core.http.openai.types import SamplingFields
from dynamo_core.serving.output import GenerationRequest
from dynamo_core.serving.served_model import ServedModel

__all__ = ["RouteAnswer", "answer_query", "is_query"]

_ANNOTATION = "query_instance_id"


class RouteAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The unary answer. With ``stream`` two events come, ``worker_instance_id`` and ``token_data``, as from Dynamo."""

    id: str
    object: str = "route"
    model: str
    worker_instance_id: int
    dp_rank: int | None
    overlap_blocks: int
    """Blocks of the prompt that the router believes cached there."""
    prompt_blocks: int
    """Full blocks of the prompt."""
    router: str
    """The plugin that chose."""
    explain: Any
    """The router's own words."""
    token_data: list[int]
    """The prompt's token ids."""


def is_query(body: SamplingFields) -> bool:
    return body.nvext is not None and _ANNOTATION in (body.nvext.annotations or ())


async def answer_query(exchange: Exchange, served: ServedModel, request: GenerationRequest, body: SamplingFields) -> ASGIApp:
    """For the first prompt. Raises what the request itself would fail with."""
    route = await served.query(request)
    prompt = list(request.prompts[0])
    record = exchange.record
    if record is not None:
        record.prompt_tokens = len(prompt)
        record.worker_ids.append(route.worker_id)
        if record.routes is not None:
            record.routes.append({"worker": route.worker_id, "explain": route.explain})
    if body.stream:
        frames = (
            (b"worker_instance_id", msgspec.json.encode(str(route.worker_id))),
            (b"token_data", msgspec.json.encode(prompt)),
        )
        text = b"".join(b"event: %s\n: %s\n\n" % frame for frame in frames) + b"data: [DONE]\n\n"
        return ASGIResponse(body=text, headers={"content-type": "text/event-stream; charset=utf-8"})
    answer = RouteAnswer(
        id=exchange.id,
        model=served.name,
        worker_instance_id=route.worker_id,
        dp_rank=route.dp_rank,
        overlap_blocks=route.overlap_blocks,
        prompt_blocks=len(prompt) // served.card.block_size if served.card.block_size else 0,
        router=served.router.plugin,
        explain=_plain(route.explain),
        token_data=list(prompt),
    )
    return ASGIResponse(body=msgspec.json.encode(answer), media_type=MediaType.JSON)


def _plain(explain: Any) -> Any:
    try:
        msgspec.json.encode(explain)
    except (TypeError, ValueError, OverflowError):  # a router may explain itself in whatever it likes
        return repr(explain)
    return explain
