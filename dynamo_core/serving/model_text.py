"""The text side of a model, loaded from its folder: tokenizer, chat template and end-of-sequence ids."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from dynamo_core.errors import InvalidRequest
from dynamo_core.serving.model_folder import ModelFolder
from dynamo_core.serving.prompt_pieces import cutting_tokens, proven
from dynamo_core.serving.template import ChatTemplate
from dynamo_core.serving.tokenizer import Tokenizer, load_tokenizer

__all__ = ["ModelText", "load_model_text"]

_CONVERSATIONS: tuple[list[dict[str, Any]], ...] = (
    [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}],
    [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}, {"role": "user", "content": "u"}],
)


class ModelText(msgspec.Struct, frozen=True, eq=False):
    tokenizer: Tokenizer
    template: ChatTemplate
    eos_token_ids: tuple[int, ...]
    cutting: tuple[str, ...] = ()
    """Added tokens of the chat template before which a prompt may be cut without changing its tokens."""


def load_model_text(path: Path | str) -> ModelText:
    """Reads files and takes up to seconds for a large vocabulary: call it in a thread. Raises ``StartupError``."""
    folder = ModelFolder.load(path)
    tokenizer = load_tokenizer(folder)
    template = ChatTemplate.of(folder)
    cutting = cutting_tokens(tokenizer.added_tokens, _said_by(template))
    return ModelText(
        tokenizer, template, folder.eos_token_ids, proven(cutting, lambda text: tokenizer.encode(text, add_special_tokens=False))
    )


def _said_by(template: ChatTemplate) -> Iterator[str]:
    """The template's own text, and what it makes of conversations: some put their tokens together from parts."""
    yield from template.source.values()
    for conversation in _CONVERSATIONS:
        try:
            yield template.render(conversation)
        except InvalidRequest:  # without a system message, say
            continue
