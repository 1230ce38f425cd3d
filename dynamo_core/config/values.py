"""Values as users write them, on a command line, in the environment and in a file, converted to the types of settings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from dynamo_core.config.fields import Field
from dynamo_core.errors import ConfigError
from dynamo_core.plugins.decoding import describe_type

__all__ = ["convert", "parse_engine_arg", "parse_text"]

_BOOLEANS = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}


def parse_engine_arg(text: str, *, where: str = "--engine-arg") -> tuple[str, Any]:
    """``KEY=VALUE`` as (key, value): the value is what it is as JSON (a number, ``true``, a list, a table …), else text.

    Raises :class:`~dynamo_core.errors.ConfigError` that begins with ``where``.
    """
    key, equals, value = text.partition("=")
    key = key.strip()
    if not equals or not key:
        raise ConfigError(f"{where} {text!r} is not KEY=VALUE: write the key, an equals sign and the value.")
    try:
        return key, msgspec.json.decode(value)
    except msgspec.DecodeError:
        return key, value


def parse_text(field: Field, text: str) -> Any:
    """What an environment variable says, before :func:`convert`: lists are separated by commas, tables are JSON or KEY=VALUE."""
    if field.is_list:
        return [item.strip() for item in text.split(",") if item.strip()]
    if field.is_table:
        return _table(text)
    if field.is_bool:
        return _BOOLEANS.get(text.strip().lower(), text)
    return text


def convert(field: Field, value: Any, where: str, *, from_text: bool) -> Any:
    """``value`` in the field's type; ``where`` names its place: ``DYN_HTTP_PORT``, ``dynamo.toml:12 http_port``.

    Raises :class:`~dynamo_core.errors.ConfigError` that names the place, the value and what it must be.
    """
    if field.is_table:
        value = _pairs(value, where)
    elif field.is_list and isinstance(value, str):
        value = [value]
    try:
        return msgspec.convert(value, field.type, strict=not from_text)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{where} is {_shown(value)}, but must be {_wanted(field)}.") from error


def _table(text: str) -> Any:
    if text.lstrip().startswith("{"):
        try:
            return msgspec.json.decode(text)
        except msgspec.DecodeError:
            return text
    return [part for part in text.split(",") if part.strip()]


def _pairs(value: Any, where: str) -> Any:
    """Command lines give a list of KEY=VALUE texts where files give a table."""
    if isinstance(value, (str, Mapping)) or not isinstance(value, Iterable):
        return value
    return dict(parse_engine_arg(item, where=where) if isinstance(item, str) else item for item in value)


def _shown(value: Any) -> str:
    return repr(value) if not isinstance(value, bool) else str(value).lower()


def _wanted(field: Field) -> str:
    if field.is_list:
        return "a list of names"
    if field.is_table:
        return "a table"
    return describe_type(field.type).removesuffix(" or ")
