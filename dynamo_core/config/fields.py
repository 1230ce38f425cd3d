"""The settings as records: what :class:`~dynamo_core.config.settings.Settings` says of names, types, flags and environment."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any, get_type_hints

import msgspec

from dynamo_core.config.settings import Settings

__all__ = ["Field", "settings_fields"]


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
    """Every setting by name, in the order in which they are declared. Costs about a millisecond."""
    hints = get_type_hints(Settings, include_extras=True)
    record = msgspec.inspect.type_info(Settings)
    assert isinstance(record, msgspec.inspect.StructType)  # noqa: S101  # for the type checker: Settings is a Struct
    return {declared.name: _field(declared, hints[declared.name]) for declared in record.fields}


def _field(declared: msgspec.inspect.Field, hint: Any) -> Field:
    extra: dict[str, Any] = {}
    doc = ""
    for meta in hint.__metadata__:
        doc = meta.description or doc
        extra.update(meta.extra or {})
    info = declared.type
    while isinstance(info, msgspec.inspect.Metadata):
        info = info.type
    flag = extra["flag"]
    default = declared.default if declared.default is not msgspec.NODEFAULT else declared.default_factory()
    return Field(
        name=declared.name,
        info=info,
        type=hint,
        default=default,
        doc=doc,
        env=tuple(extra["env"]),
        flag=None if flag == "" else "--" + (flag or declared.name.replace("_", "-")),
        commands=tuple(extra["commands"]),
    )
