"""The configuration of a plugin as records: keys, types, defaults and what the author says of them."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import msgspec

from dynamo_core.plugins.decoding import describe_type

__all__ = ["ConfigKey", "attribute_docs", "config_keys"]


class ConfigKey(msgspec.Struct, frozen=True, kw_only=True):
    """One key of ``[plugins.NAME]``."""

    name: str
    type: str
    """In a user's words: ``a whole number from 0 to 65535``."""
    required: bool
    default: Any = None
    doc: str = ""


def config_keys(type_: type[msgspec.Struct]) -> tuple[ConfigKey, ...]:
    """Every key in the order of declaration. A key is documented by the text below it or by ``msgspec.Meta(description=…)``."""
    info = msgspec.inspect.type_info(type_)
    assert isinstance(info, msgspec.inspect.StructType)  # noqa: S101  # for the type checker
    docs = attribute_docs(type_)
    return tuple(_key(field, docs) for field in info.fields)


def _key(field: msgspec.inspect.Field, docs: Mapping[str, str]) -> ConfigKey:
    default = field.default
    if default is msgspec.NODEFAULT and field.default_factory is not msgspec.NODEFAULT:
        default = field.default_factory()
    return ConfigKey(
        name=field.encode_name,
        type=describe_type(field.type),
        required=field.required,
        default=None if default is msgspec.NODEFAULT else default,
        doc=docs.get(field.name) or _description(field.type),
    )


def _description(info: msgspec.inspect.Type) -> str:
    if isinstance(info, msgspec.inspect.Metadata):
        return (info.extra_json_schema or {}).get("description", "") or _description(info.type)
    return ""


def attribute_docs(type_: type) -> dict[str, str]:
    """Field → the text below it in the source of the class and of its bases, as one line; empty where there is no source."""
    docs: dict[str, str] = {}
    for class_ in reversed(type_.__mro__[:-1]):
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(class_)))
        except (OSError, TypeError, SyntaxError):
            continue
        body = tree.body[0].body if tree.body and isinstance(tree.body[0], ast.ClassDef) else []
        for statement, follower in pairwise(body):
            if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name) and isinstance(follower, ast.Expr):
                text = follower.value.value if isinstance(follower.value, ast.Constant) else None
                if isinstance(text, str):
                    docs[statement.target.id] = " ".join(text.split())
    return docs
