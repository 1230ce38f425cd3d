"""The text side of a model, loaded from its folder: tokenizer, chat template and end-of-sequence ids."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec

from dynamo_core.errors import InvalidRequest
from dynamo_core.serving.model_folder import ModelFolder
from dynamo_core.serving.prompt_pieces import cutting_tokens, proven
from dynamo_core.serving.template import ChatTemplate
from dynamo_core.serving.tokenizer import Tokenizer, load_tokenizer

__all__ = ["ModelText", "hasten", "load_model_text", "with_template"]

_log = logging.getLogger(__name__)

_CONVERSATIONS: tuple[list[dict[str, Any]], ...] = (
    [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}],
    [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}, {"role": "user", "content": "u"}],
)


_SOON_LOADED = 2 << 20
"""Bytes of ``tokenizer.json`` up to which nobody has to wait for the faster encoder: half a second."""


class ModelText(msgspec.Struct, frozen=True, eq=False):
    tokenizer: Tokenizer
    template: ChatTemplate
    eos_token_ids: tuple[int, ...]
    cutting: tuple[str, ...] = ()
    """Added tokens of the chat template before which a prompt may be cut without changing its tokens."""


def load_model_text(path: Path | str) -> ModelText:
    """Reads files and takes up to seconds for a large vocabulary: call it in a thread. Raises ``StartupError``.

    A large tokenizer is still to be given to :func:`hasten`.
    """
    folder = ModelFolder.load(path)
    tokenizer = load_tokenizer(folder, hastened=folder.tokenizer_json.stat().st_size <= _SOON_LOADED)
    template = ChatTemplate.of(folder)
    return ModelText(tokenizer, template, folder.eos_token_ids, _cutting(tokenizer, template))


def with_template(text: ModelText, source: str) -> ModelText:
    """The same, with another chat template. Takes some milliseconds."""
    template = text.template.replaced(source)
    return msgspec.structs.replace(text, template=template, cutting=_cutting(text.tokenizer, template))


def _cutting(tokenizer: Tokenizer, template: ChatTemplate) -> tuple[str, ...]:
    cutting = cutting_tokens(tokenizer.added_tokens, _said_by(template))
    return proven(cutting, lambda text: tokenizer.encode(text, add_special_tokens=False))


async def hasten(tokenizer: Tokenizer, model: str) -> None:
    """Let a tokenizer become faster while it serves."""
    begun = time.monotonic()
    alone = ThreadPoolExecutor(1, thread_name_prefix="hasten")
    try:
        await asyncio.get_running_loop().run_in_executor(alone, tokenizer.hasten)
    finally:
        alone.shutdown(wait=False)
    _log.info(
        "prompts of %s are encoded with %s, %.1f s after the model was ready", model, tokenizer.backend, time.monotonic() - begun
    )


def _said_by(template: ChatTemplate) -> Iterator[str]:
    """The template's own text, and what it makes of conversations: some put their tokens together from parts."""
    yield from template.source.values()
    for conversation in _CONVERSATIONS:
        try:
            yield template.render(conversation)
        except InvalidRequest:  # without a system message, say
            continue
