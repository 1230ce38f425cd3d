"""The folder of a model in Hugging Face layout: what the frontend needs of it besides the vocabulary."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from dynamo_core.errors import StartupError

__all__ = ["AddedToken", "ModelFolder", "TokenizerHeader"]

_LENGTH_KEYS = ("max_position_embeddings", "n_positions", "max_sequence_length", "max_seq_len", "seq_length", "n_ctx")


class AddedToken(msgspec.Struct, frozen=True):
    """An entry of ``tokenizer.json`` that is matched as a whole, before the text is split."""

    id: int
    content: str
    special: bool = False
    normalized: bool = True
    """Looked for in the text as the normalizer leaves it; otherwise before that, in the raw text."""
    lstrip: bool = False
    """Takes the whitespace before it."""
    rstrip: bool = False
    single_word: bool = False
    """Counts only where no letter touches it."""


class TokenizerHeader(msgspec.Struct, frozen=True):
    """What ``tokenizer.json`` says besides its vocabulary. The vocabulary is skipped, not parsed: 0.1 s for 33 MB."""

    added_tokens: list[AddedToken] = []
    normalizer: dict[str, Any] | None = None
    pre_tokenizer: dict[str, Any] | None = None
    decoder: dict[str, Any] | None = None

    @property
    def byte_level(self) -> bool:
        """Whether tokens are spelt in GPT-2's alphabet of bytes, and text is split by a pattern first."""
        return (self.decoder or {}).get("type") == "ByteLevel"


class ModelFolder(msgspec.Struct, frozen=True, kw_only=True):
    path: Path
    tokenizer_json: Path
    config: Mapping[str, Any] = {}
    """``config.json``; empty without one."""
    context_length: int | None = None
    """Positions the model was made for. The engine's own limit, when it tells one, is the truth."""
    eos_token_ids: tuple[int, ...] = ()
    """Ids that end a generation, from the generation config, the model config and the tokenizer config, in this order."""
    special_tokens: Mapping[str, str] = {}
    """By role: ``bos_token`` and the like. Chat templates see them under these names."""
    chat_templates: Mapping[str, str] = {}
    """By name; ``default`` is the one without a name."""

    @property
    def bos_token(self) -> str | None:
        return self.special_tokens.get("bos_token")

    @property
    def eos_token(self) -> str | None:
        return self.special_tokens.get("eos_token")

    @classmethod
    def load(cls, path: str | Path) -> ModelFolder:
        """Read the small files of the folder. Blocks; raises :class:`StartupError`."""
        folder = Path(path).expanduser()
        if not folder.exists():
            raise StartupError(
                f"model folder {str(path)!r} does not exist; give the path of a folder in Hugging Face layout "
                "(models are not downloaded by name)"
            )
        if not folder.is_dir():
            raise StartupError(f"model path {str(path)!r} is a file; give the folder that holds config.json and tokenizer.json")
        tokenizer_json = folder / "tokenizer.json"
        if not tokenizer_json.is_file():
            raise StartupError(
                f"model folder {str(path)!r} has no tokenizer.json; save the model's fast tokenizer there "
                "(AutoTokenizer.from_pretrained(...).save_pretrained(...))"
            )
        config = _read_object(folder / "config.json")
        tokenizer_config = _read_object(folder / "tokenizer_config.json")
        special_tokens = _special_tokens(_read_object(folder / "special_tokens_map.json"), tokenizer_config)
        return cls(
            path=folder,
            tokenizer_json=tokenizer_json,
            config=config,
            context_length=_context_length(config),
            eos_token_ids=_eos_token_ids(
                _read_object(folder / "generation_config.json"),
                config,
                _token_id(special_tokens.get("eos_token"), tokenizer_config, tokenizer_json),
            ),
            special_tokens=special_tokens,
            chat_templates=_chat_templates(folder, tokenizer_config),
        )

    def tokenizer_header(self) -> TokenizerHeader:
        """Blocks for the reading of ``tokenizer.json``; raises :class:`StartupError`."""
        return _read_header(self.tokenizer_json)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise StartupError(f"cannot read {str(path)!r}: {error.strerror}") from error


def _read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty when there is no such file."""
    if not path.is_file():
        return {}
    try:
        return msgspec.json.decode(_read(path), type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise StartupError(f"{str(path)!r} is not a JSON object: {error}; fetch the model's files again") from error


def _read_header(path: Path) -> TokenizerHeader:
    try:
        return msgspec.json.decode(_read(path), type=TokenizerHeader)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise StartupError(f"{str(path)!r} is not a tokenizer: {error}; fetch the model's files again") from error


def _context_length(config: Mapping[str, Any]) -> int | None:
    """Multimodal models keep the language model's numbers in ``text_config``."""
    text_config = config.get("text_config")
    for table in (text_config, config) if isinstance(text_config, dict) else (config,):
        for key in _LENGTH_KEYS:
            value = table.get(key)
            if isinstance(value, int) and value > 0:
                return value
    return None


def _ids(value: object) -> Iterator[int]:
    for item in value if isinstance(value, list) else (value,):
        if isinstance(item, int) and not isinstance(item, bool):
            yield item


def _eos_token_ids(generation_config: Mapping[str, Any], config: Mapping[str, Any], named: int | None) -> tuple[int, ...]:
    text_config = config.get("text_config")
    ids = dict.fromkeys(_ids(generation_config.get("eos_token_id")))
    ids.update(dict.fromkeys(_ids(config.get("eos_token_id"))))
    if isinstance(text_config, dict):
        ids.update(dict.fromkeys(_ids(text_config.get("eos_token_id"))))
    ids.update(dict.fromkeys(_ids(named)))
    return tuple(ids)


def _token_id(content: str | None, tokenizer_config: Mapping[str, Any], tokenizer_json: Path) -> int | None:
    if content is None:
        return None
    known = tokenizer_config.get("added_tokens_decoder")
    for key, entry in known.items() if isinstance(known, dict) else ():
        if isinstance(entry, dict) and entry.get("content") == content and key.isdigit():
            return int(key)
    return next((token.id for token in _read_header(tokenizer_json).added_tokens if token.content == content), None)


def _special_tokens(*sources: Mapping[str, Any]) -> dict[str, str]:
    """Later sources win, as the tokenizer config does in transformers."""
    tokens: dict[str, str] = {}
    for source in sources:
        extra = source.get("extra_special_tokens")
        for key, value in {**source, **(extra if isinstance(extra, dict) else {})}.items():
            text = value.get("content") if isinstance(value, dict) else value
            if key.endswith("_token") and isinstance(text, str):
                tokens[key] = text
    return tokens


def _chat_templates(folder: Path, tokenizer_config: Mapping[str, Any]) -> dict[str, str]:
    """``chat_template.jinja`` and ``additional_chat_templates/NAME.jinja``, else what the tokenizer config holds."""
    files = {"default": folder / "chat_template.jinja"}
    files |= {file.stem: file for file in sorted((folder / "additional_chat_templates").glob("*.jinja"))}
    templates: dict[str, str] = {}
    for name, file in files.items():
        if file.is_file():
            templates[name] = _read(file).decode("utf-8", "replace")
    if templates:
        return templates
    inline = tokenizer_config.get("chat_template") or _read_object(folder / "chat_template.json").get("chat_template")
    if isinstance(inline, str):
        return {"default": inline}
    if isinstance(inline, dict):
        return {name: text for name, text in inline.items() if isinstance(text, str)}
    if isinstance(inline, list):
        return {
            entry["name"]: entry["template"]
            for entry in inline
            if isinstance(entry, dict) and isinstance(entry.get("name"), str) and isinstance(entry.get("template"), str)
        }
    return {}
