"""The text side of a model, loaded from its folder: tokenizer, chat template and end-of-sequence ids."""

from __future__ import annotations

from pathlib import Path

import msgspec

from dynamo_core.serving.model_folder import ModelFolder
from dynamo_core.serving.template import ChatTemplate
from dynamo_core.serving.tokenizer import Tokenizer, load_tokenizer

__all__ = ["ModelText", "load_model_text"]


class ModelText(msgspec.Struct, frozen=True, eq=False):
    tokenizer: Tokenizer
    template: ChatTemplate
    eos_token_ids: tuple[int, ...]


def load_model_text(path: Path | str) -> ModelText:
    """Reads files and takes up to seconds for a large vocabulary: call it in a thread. Raises ``StartupError``."""
    folder = ModelFolder.load(path)
    return ModelText(load_tokenizer(folder), ChatTemplate.of(folder), folder.eos_token_ids)
