"""Settings as records: what structs whose fields carry :func:`~dynamo_core.config.settings.setting` say of names, types, flags
and environment. Those of the core are :class:`~dynamo_core.config.settings.Settings`, those of a plugin its configuration."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any, get_type_hints

import msgspec

from dynamo_core.config.settings import Settings

__all__ = ["Field", "settings_fields", "struct_fields"]


class Field(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """One setting."""

    name: str
    info: msgspec.inspect.Type
    """Its type without the annotations of :func:`~dynamo_core.config.settings.setting`."""
    type: Any
    """Its type as msgspec converts to it, bounds included."""
    default: Any
    doc: str
    env: tuple[str, ...]
    """Environment names, the preferred one first."""
    flag: str | None
    """``--http-port``; ``None`` where there is no flag."""
    commands: tuple[str, ...]
    """Commands that have the flag; empty: all."""

    @cached_property
    def is_list(self) -> bool:
        return isinstance(self.info, msgspec.inspect.VarTupleType)

    @cached_property
    def is_table(self) -> bool:
        return isinstance(self.info, msgspec.inspect.DictType)

    @cached_property
    def is_bool(self) -> bool:
        return isinstance(self.info, msgspec.inspect.BoolType)


def settings_fields() -> Mapping[str, Field]:
    """Every setting of the core by name, in the order in which they are declared. Costs about a millisecond."""
    return struct_fields(Settings)


def struct_fields(type_: type[msgspec.Struct]) -> Mapping[str, Field]:
    """Every field by the name that it has in a file.

    One without :func:`~dynamo_core.config.settings.setting` has neither flag nor environment name.
    """
    hints = get_type_hints(type_, include_extras=True)
    record = msgspec.inspect.type_info(type_)
    assert isinstance(record, msgspec.inspect.StructType)  # noqa: S101  # for the type checker
    return {declared.encode_name: _field(declared, hints[declared.name]) for declared in record.fields}


def _field(declared: msgspec.inspect.Field, hint: Any) -> Field:
    extra: dict[str, Any] = {}
    doc = ""
    for meta in getattr(hint, "__metadata__", ()):
        if isinstance(meta, msgspec.Meta):
            doc = meta.description or doc
            extra.update(meta.extra or {})
    info = declared.type
    while isinstance(info, msgspec.inspect.Metadata):
        info = info.type
    flag = extra.get("flag") if "env" in extra else ""
    return Field(
        name=declared.encode_name,
        info=info,
        type=hint,
        default=_default(declared),
        doc=doc,
        env=tuple(extra.get("env", ())),
        flag=None if flag == "" else "--" + (flag or declared.name.replace("_", "-")),
        commands=tuple(extra.get("commands", ())),
    )


def _default(declared: msgspec.inspect.Field) -> Any:
    if declared.default is not msgspec.NODEFAULT:
        return declared.default
    return None if declared.default_factory is msgspec.NODEFAULT else declared.default_factory()
