"""What goes over the wire in OpenAI's API, with vLLM's extensions under vLLM's names. ``/openapi.json`` is made from these."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from msgspec import UNSET, Meta, Struct, UnsetType

__all__ = [
    "AgentHints",
    "ChatChoice",
    "ChatChunk",
    "ChatChunkChoice",
    "ChatCompletion",
    "ChatCompletionRequest",
    "ChatLogprobs",
    "ChatMessage",
    "ChatToken",
    "Completion",
    "CompletionChoice",
    "CompletionChunk",
    "CompletionLogprobs",
    "CompletionRequest",
    "Delta",
    "ModelList",
    "ModelObject",
    "NvExt",
    "Prompt",
    "PromptTokensDetails",
    "ResponseFormat",
    "RoutingConstraints",
    "SamplingFields",
    "StreamOptions",
    "StructuredOutputs",
    "TopToken",
    "UsageBody",
]

INT64 = 2**63

Probability: TypeAlias = Annotated[float, Meta(ge=0, le=1)]
Penalty: TypeAlias = Annotated[float, Meta(ge=-2, le=2)]
Positive: TypeAlias = Annotated[int, Meta(ge=1, le=INT64 - 1)]
Count: TypeAlias = Annotated[int, Meta(ge=0, le=INT64 - 1)]
TokenId: TypeAlias = Annotated[int, Meta(ge=0, le=2**32 - 1)]
Prompt: TypeAlias = str | list[str | TokenId | list[TokenId]]
"""A text, several texts, token ids, or several lists of token ids."""

# --- requests ----------------------------------------------------------------------------------------------------------------


class StreamOptions(Struct, frozen=True, kw_only=True):
    include_usage: bool | None = None
    """One more chunk, with the usage and no choices, before the end."""
    continuous_usage_stats: bool | None = None
    """The usage so far on every chunk."""


class ResponseFormat(Struct, frozen=True, kw_only=True):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: dict[str, Any] | None = None
    """``{"name": …, "schema": {…}}``."""


class StructuredOutputs(Struct, frozen=True, kw_only=True):
    """Exactly one of these."""

    json: dict[str, Any] | str | None = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None


class AgentHints(Struct, frozen=True, kw_only=True):
    priority: Annotated[int, Meta(ge=-(2**31), le=2**31 - 1)] | None = None
    """Higher goes first, in queues of the router and of engines that have priorities."""
    strict_priority: Annotated[int, Meta(ge=0, le=2**31 - 1)] | None = None
    """A higher tier leaves the router's queue before all lower ones."""
    osl: Positive | None = None
    """Tokens that the answer will have, as far as you know."""


class RoutingConstraints(Struct, frozen=True, kw_only=True):
    required_taints: list[str] | None = None
    """Only workers with all of these taints."""
    preferred_taints: dict[str, float] | None = None
    """Taint and weight: workers with it are preferred, the more the higher; below 0 avoided."""


class NvExt(Struct, frozen=True, kw_only=True):
    """Dynamo's extension, as far as it is about routing; other keys are ignored."""

    agent_hints: AgentHints | None = None
    routing_constraints: RoutingConstraints | None = None
    backend_instance_id: Annotated[int, Meta(ge=0, le=INT64 - 1)] | None = None
    dp_rank: Annotated[int, Meta(ge=0, le=2**16)] | None = None
    cache_salt: str | None = None
    session_id: str | None = None
    """Requests of one session go to one worker, where the server keeps sessions together."""
    annotations: list[str] | None = None
    """``query_instance_id``: answer which worker would take the request, and do nothing else. Others are ignored."""


class SamplingFields(Struct, frozen=True, kw_only=True):
    """What both APIs take. ``null`` means the same as a field left out."""

    model: str
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    n: Annotated[int, Meta(ge=1, le=128)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    stop: str | list[str] | None = None
    max_tokens: Positive | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: dict[TokenId, Annotated[float, Meta(ge=-100, le=100)]] | None = None
    seed: Annotated[int, Meta(ge=-INT64, le=INT64 - 1)] | None = None
    user: str | None = None
    response_format: ResponseFormat | None = None
    # vLLM's extensions
    top_k: Annotated[int, Meta(ge=-1, le=2**31 - 1)] | None = None
    min_p: Probability | None = None
    repetition_penalty: Annotated[float, Meta(gt=0)] | None = None
    ignore_eos: bool | None = None
    min_tokens: Count | None = None
    stop_token_ids: list[TokenId] | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    guided_json: dict[str, Any] | str | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None
    structured_outputs: StructuredOutputs | None = None
    priority: Annotated[int, Meta(ge=-(2**31), le=2**31 - 1)] | None = None
    """Lower runs first."""
    cache_salt: str | None = None
    prompt_cache_key: str | None = None
    """The session, as ``nvext.session_id``."""
    nvext: NvExt | None = None


class ChatCompletionRequest(SamplingFields, frozen=True, kw_only=True):
    messages: Annotated[list[dict[str, Any]], Meta(min_length=1, description="Each with `role` and `content`.")]
    max_completion_tokens: Positive | None = None
    """Wins over ``max_tokens``."""
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: bool | None = None


class CompletionRequest(SamplingFields, frozen=True, kw_only=True):
    prompt: Annotated[Prompt, Meta(description="A text, a list of texts, token ids, or a list of lists of token ids.")]
    echo: bool | None = None
    logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    best_of: Positive | None = None
    suffix: str | None = None
    add_special_tokens: bool | None = None


# --- answers -----------------------------------------------------------------------------------------------------------------


class PromptTokensDetails(Struct, frozen=True):
    cached_tokens: int


class UsageBody(Struct, frozen=True):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class TopToken(Struct, frozen=True):
    token: str
    logprob: float
    bytes: list[int]


class ChatToken(Struct, frozen=True):
    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopToken]


class ChatLogprobs(Struct, frozen=True):
    content: list[ChatToken]


class ChatMessage(Struct, frozen=True):
    role: str
    content: str | None
    refusal: str | None = None


class ChatChoice(Struct, frozen=True):
    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: str | None
    stop_reason: int | str | None = None


class ChatCompletion(Struct, frozen=True):
    id: str
    object: str
    created: int
    model: str
    choices: list[ChatChoice]
    usage: UsageBody


class Delta(Struct, frozen=True, omit_defaults=True):
    role: str | None = None
    content: str | None = None


class ChatChunkChoice(Struct, frozen=True):
    index: int
    delta: Delta
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: int | str | UnsetType | None = UNSET


class ChatChunk(Struct, frozen=True):
    id: str
    object: str
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: UsageBody | UnsetType | None = UNSET


class CompletionLogprobs(Struct, frozen=True):
    text_offset: list[int]
    token_logprobs: list[float]
    tokens: list[str]
    top_logprobs: list[dict[str, float]]


class CompletionChoice(Struct, frozen=True):
    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: int | str | UnsetType | None = UNSET


class Completion(Struct, frozen=True):
    id: str
    object: str
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: UsageBody


class CompletionChunk(Struct, frozen=True):
    id: str
    object: str
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: UsageBody | UnsetType | None = UNSET


class ModelObject(Struct, frozen=True):
    id: str
    object: str
    created: int
    owned_by: str
    context_window: int
    """Tokens of prompt and output together; 0 when there is no limit."""
    max_model_len: int | None
    """The same under vLLM's name."""


class ModelList(Struct, frozen=True):
    object: str
    data: list[ModelObject]
