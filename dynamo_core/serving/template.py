"""Chat templates: from messages to the prompt's text, as ``apply_chat_template`` of transformers renders it.

Two habits of OpenAI's clients are smoothed over before a template sees the messages: content given as a list of text parts
becomes one string unless the template reads parts itself, and the arguments of tool calls, which travel as JSON text, become
objects.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

import jinja2
import msgspec
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from dynamo_core.errors import InvalidRequest
from dynamo_core.serving.model_folder import ModelFolder

__all__ = ["ChatTemplate"]


class ChatTemplate:
    """The templates of one model, compiled. Rendering takes tens of microseconds and mutates nothing.

    A template that does not compile counts as missing: completions still work, and chat requests are told why.
    """

    __slots__ = ("_compiled", "_reasons", "_special_tokens", "_takes_parts", "source")

    def __init__(self, source: str | Mapping[str, str] | None, special_tokens: Mapping[str, str]) -> None:
        self.source: Mapping[str, str] = {"default": source} if isinstance(source, str) else dict(source or {})
        self._special_tokens = dict(special_tokens)
        self._compiled: dict[str, jinja2.Template] = {}
        self._takes_parts: dict[str, bool] = {}
        self._reasons: dict[str, str] = {}
        environment = _environment()
        for name, text in self.source.items():
            try:
                tree = environment.parse(text)
                self._takes_parts[name] = _takes_parts(tree)
                self._compiled[name] = template = environment.from_string(tree)
                template.globals = dict(template.globals)  # a ChainMap otherwise, which Python would walk for each prompt
            except jinja2.TemplateSyntaxError as error:
                self._reasons[name] = f"has a syntax error in line {error.lineno}: {error.message}"

    @classmethod
    def of(cls, folder: ModelFolder) -> ChatTemplate:
        return cls(folder.chat_templates, folder.special_tokens)

    def replaced(self, source: str) -> ChatTemplate:
        """Another template for the same model."""
        return ChatTemplate(source, self._special_tokens)

    @property
    def faults(self) -> Mapping[str, str]:
        """By template, what keeps it from being rendered: ``has a syntax error in line 3: …``."""
        return self._reasons

    def __bool__(self) -> bool:
        """Whether there is a template to render with."""
        return bool(self._compiled)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        /,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        **kwargs: Any,
    ) -> str:
        """The prompt's text. ``kwargs`` are the template's own variables and win over the special tokens.

        Raises :class:`InvalidRequest` for messages that the template refuses or cannot render. Special tokens are in the text:
        encode it with ``add_special_tokens=False``.
        """
        name = self._choose(tools)
        if not messages:
            raise InvalidRequest("messages is empty; send at least one message", param="messages")
        variables = {**self._special_tokens, **kwargs}
        variables |= {
            "messages": _plain_messages(messages, takes_parts=self._takes_parts[name]),
            "tools": tools,
            "documents": documents,
            "add_generation_prompt": add_generation_prompt,
        }
        try:
            return self._compiled[name].render(variables)
        except jinja2.TemplateError as error:
            # What the template says by raise_exception() is meant for whoever wrote the messages.
            raise InvalidRequest(
                f"the model's chat template refuses these messages: {error.message or type(error).__name__}", param="messages"
            ) from error
        except Exception as error:
            # A template is a program over the client's data: any exception means that it cannot read this data.
            raise InvalidRequest(
                f"the model's chat template cannot render these messages ({type(error).__name__}: {error}); "
                "check that each message has the fields and types that the model expects",
                param="messages",
            ) from error

    def _choose(self, tools: Sequence[Mapping[str, Any]] | None) -> str:
        name = "tool_use" if tools is not None and "tool_use" in self.source else "default"
        if name in self._compiled:
            return name
        if name in self._reasons:
            raise InvalidRequest(f"the model's chat template {self._reasons[name]}; use /v1/completions", param="messages")
        if self.source:
            names = ", ".join(sorted(self.source))
            raise InvalidRequest(f"the model has chat templates ({names}) but none named default", param="messages")
        raise InvalidRequest("the model has no chat template; use /v1/completions", param="messages")


class _GenerationBlocks(Extension):
    """``{% generation %}`` marks for training which text is the assistant's; to a server it is only its body."""

    tags = {"generation"}  # noqa: RUF012 - jinja2's own declaration

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlocks, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """jinja2's own filter escapes HTML, which would reach the model."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)  # noqa: DTZ005 - templates mean the wall clock of the place


def _takes_parts(tree: nodes.Template) -> bool:
    """Whether the template loops over a message's content, or over a variable that stands for it."""
    names = {
        assign.target.name
        for assign in tree.find_all(nodes.Assign)
        if isinstance(assign.target, nodes.Name) and _is_content(assign.node)
    }
    for loop in tree.find_all(nodes.For):
        iterated = loop.iter
        while isinstance(iterated, nodes.Filter) and iterated.node is not None:
            iterated = iterated.node
        if _is_content(iterated) or (isinstance(iterated, nodes.Name) and iterated.name in names | {"content"}):
            return True
    return False


def _is_content(node: nodes.Node) -> bool:
    if isinstance(node, nodes.Getattr):
        return node.attr == "content"
    return isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Const) and node.arg.value == "content"


def _plain_messages(messages: Sequence[Mapping[str, Any]], *, takes_parts: bool) -> list[dict[str, Any]]:
    """Copies where something changes; the caller's messages stay as they are."""
    plain: list[dict[str, Any]] = []
    for index, original in enumerate(messages):
        message = dict(original)
        if isinstance(message.get("content"), list) and not takes_parts:
            message["content"] = _joined_text(message["content"], index)
        if message.get("tool_calls"):
            message["tool_calls"] = [_plain_tool_call(call, index) for call in message["tool_calls"]]
        plain.append(message)
    return plain


def _joined_text(parts: Sequence[Any], index: int) -> str:
    texts: list[str] = []
    for part in parts:
        text = part.get("text") if isinstance(part, dict) else part
        if not isinstance(text, str):
            kind = part.get("type") if isinstance(part, dict) else type(part).__name__
            raise InvalidRequest(
                f"message {index} has content of type {kind}, but the model takes text only", param=f"messages.{index}.content"
            )
        texts.append(text)
    return "\n".join(texts)


def _plain_tool_call(call: Any, index: int) -> Any:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), str):
        return call
    arguments: str = function["arguments"]
    try:
        decoded = msgspec.json.decode(arguments) if arguments.strip() else {}
    except msgspec.DecodeError as error:
        raise InvalidRequest(
            f"message {index} has a tool call whose arguments are not JSON", param=f"messages.{index}.tool_calls"
        ) from error
    return {**call, "function": {**function, "arguments": decoded}}
