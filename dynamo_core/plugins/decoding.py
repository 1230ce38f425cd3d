"""Tables of a configuration file into typed records, with sentences for what does not fit."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

from dynamo_core.errors import ConfigError
from dynamo_core.plugins.names import suggestion

__all__ = ["decode_table", "describe_type"]

_T = TypeVar("_T", bound=msgspec.Struct)

_PATH = re.compile(r" - at `(?:key in )?\$(?P<path>[^`]*)`$")
_STEP = re.compile(r"\.(?P<key>[^.\[\]]+)|\[(?P<index>[^\]]*)\]")
_UNKNOWN = re.compile(r"Object contains unknown field `(?P<key>.*?)`")
_MISSING = re.compile(r"Object missing required field `(?P<key>.*?)`")


def decode_table(type_: type[_T], table: Mapping[str, Any], *, path: str, source: str) -> _T:
    """``table`` as a ``type_``; ``path`` (``plugins.acme``) and ``source`` (the file) only speak in the error.

    Raises :class:`~dynamo_core.errors.ConfigError` that names the file, the key's path and, for an unknown key, the nearest.
    """
    try:
        return msgspec.convert(dict(table), type_)
    except msgspec.ValidationError as error:
        raise ConfigError(_sentence(type_, table, str(error), path, source)) from error


def _sentence(type_: type[msgspec.Struct], table: Mapping[str, Any], message: str, path: str, source: str) -> str:
    match = _PATH.search(message)
    steps = _steps(match["path"]) if match else ()
    problem = _PATH.sub("", message)
    where = path + (match["path"].replace("[...]", ".*") if match else "")
    target = _type_at(msgspec.inspect.type_info(type_), steps)
    if unknown := _UNKNOWN.match(problem):
        keys = [field.encode_name for field in target.fields] if isinstance(target, msgspec.inspect.StructType) else []
        hint = suggestion(unknown["key"], keys, what="valid keys")
        return f"{source}: unknown key {where}.{unknown['key']}: {hint}"
    if missing := _MISSING.match(problem):
        return f"{source}: key {where}.{missing['key']} is missing and has no default: add it to [{where}]."
    value = _value_at(table, steps)
    shown = "" if value is msgspec.UNSET else f" is {value!r}, but"
    constraint = f" ({problem[0].lower()}{problem[1:]})" if " length " in problem or " matching " in problem else ""
    return f"{source}: {where}{shown} must be {describe_type(target)}{constraint}."


def _steps(path: str) -> tuple[str, ...]:
    return tuple(match["key"] or f"[{match['index']}]" for match in _STEP.finditer(path))


def _type_at(info: msgspec.inspect.Type, steps: tuple[str, ...]) -> msgspec.inspect.Type:
    for step in steps:
        for candidate in _alternatives(info):
            inner = _child(candidate, step)
            if inner is not None:
                info = inner
                break
        else:
            return info
    structs = [candidate for candidate in _alternatives(info) if isinstance(candidate, msgspec.inspect.StructType)]
    return structs[0] if len(structs) == 1 else _bare(info)


def _child(info: msgspec.inspect.Type, step: str) -> msgspec.inspect.Type | None:
    if isinstance(info, msgspec.inspect.StructType):
        return next((field.type for field in info.fields if field.encode_name == step), None)
    if isinstance(info, msgspec.inspect.DictType):
        return info.value_type
    if isinstance(info, msgspec.inspect.TupleType):
        position = step.strip("[]")
        return info.item_types[int(position)] if position.isdigit() and int(position) < len(info.item_types) else None
    return getattr(info, "item_type", None)


def _bare(info: msgspec.inspect.Type) -> msgspec.inspect.Type:
    return _bare(info.type) if isinstance(info, msgspec.inspect.Metadata) else info


def _alternatives(info: msgspec.inspect.Type) -> tuple[msgspec.inspect.Type, ...]:
    bare = _bare(info)
    return tuple(_bare(type_) for type_ in bare.types) if isinstance(bare, msgspec.inspect.UnionType) else (bare,)


def _value_at(table: Any, steps: tuple[str, ...]) -> Any:
    for step in steps:
        index = step.strip("[]")
        try:
            table = table[int(index)] if step.startswith("[") else table[step]
        except (KeyError, IndexError, TypeError, ValueError):
            return msgspec.UNSET
    return table if steps else msgspec.UNSET


def describe_type(type_: Any) -> str:
    """A type in a user's words: ``a whole number from 0 to 65535``, ``text or nothing``."""
    info = type_ if isinstance(type_, msgspec.inspect.Type) else msgspec.inspect.type_info(type_)
    return " or ".join(_describe(candidate) for candidate in _alternatives(info) if candidate != msgspec.inspect.NoneType())


def _describe(info: msgspec.inspect.Type) -> str:
    match info:
        case msgspec.inspect.BoolType():
            return "true or false"
        case msgspec.inspect.IntType():
            return "a whole number" + _range(info)
        case msgspec.inspect.FloatType():
            return "a number" + _range(info)
        case msgspec.inspect.StrType():
            return "text"
        case msgspec.inspect.LiteralType() | msgspec.inspect.EnumType():
            values = info.values if isinstance(info, msgspec.inspect.LiteralType) else [member.value for member in info.cls]
            return "one of " + ", ".join(repr(value) for value in values)
        case msgspec.inspect.DictType() | msgspec.inspect.StructType():
            return "a table"
        case msgspec.inspect.AnyType():
            return "any value"
        case msgspec.inspect.CollectionType() | msgspec.inspect.TupleType():
            return "a list"
        case _:
            return "a " + type(info).__name__.removesuffix("Type").lower()


def _range(info: msgspec.inspect.IntType | msgspec.inspect.FloatType) -> str:
    if info.ge is not None and info.le is not None:
        return f" from {info.ge} to {info.le}"
    bounds = ((info.ge, "of at least"), (info.gt, "over"), (info.le, "of at most"), (info.lt, "under"))
    return "".join(f" {word} {bound}" for bound, word in bounds if bound is not None)
