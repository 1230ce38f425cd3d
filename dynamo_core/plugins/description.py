"""Everything that one plugin says of itself, for ``dynamo plugins show``."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import msgspec

from dynamo_core import hookspecs
from dynamo_core.errors import ConfigError
from dynamo_core.plugins.configuration import ConfigKey, config_keys
from dynamo_core.plugins.decoding import decode_table
from dynamo_core.plugins.hooks import ActivePlugin, Implementation
from dynamo_core.plugins.installed import PluginInfo
from dynamo_core.plugins.loading import config_type, load_plugin, specified
from dynamo_core.plugins.providers import KINDS, plugin_records, table_of

__all__ = ["HookDescription", "PluginDescription", "RecordDescription", "describe_plugin"]


class HookDescription(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    kind: Literal["registration", "request", "lifecycle"]
    arguments: tuple[str, ...]
    """Those that the function asks for."""
    is_async: bool
    doc: str
    """First line of the function's own docstring, else of the hook's."""


class RecordDescription(msgspec.Struct, frozen=True, kw_only=True):
    kind: str
    name: str
    api: int
    stability: str
    description: str
    requires: Mapping[str, str] = {}
    """Module → the pip line that brings it."""


class PluginDescription(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    version: str
    distribution: str
    target: str
    state: str
    summary: str
    """First paragraph of the module's docstring."""
    hooks: tuple[HookDescription, ...]
    records: tuple[RecordDescription, ...]
    configuration: tuple[ConfigKey, ...]


def describe_plugin(
    info: PluginInfo, *, table: Mapping[str, Any] | None = None, source: str = "dynamo.toml"
) -> PluginDescription:
    """Import the plugin, whatever it requires of this machine, and look at it.

    ``table`` is its ``[plugins.NAME]``. Raises :class:`~dynamo_core.errors.StartupError` for what activation would refuse.
    """
    hooks = load_plugin(info, specified())
    type_ = config_type(info, hooks)
    config = None
    if type_ is not None:
        try:
            config = decode_table(type_, table or {}, path=f"plugins.{info.name}", source=source)
        except ConfigError:
            if table:
                raise
    plugin = ActivePlugin(info, hooks, config)
    return PluginDescription(
        name=info.name,
        version=info.version,
        distribution=info.distribution,
        target=info.target,
        state=info.state,
        summary=" ".join((inspect.getdoc(sys.modules[info.target.partition(":")[0]]) or "").split("\n\n")[0].split()),
        hooks=tuple(_hook(implementation) for implementation in sorted(hooks.values(), key=_position)),
        records=tuple(_records(plugin, without_config=type_ is not None and config is None)),
        configuration=config_keys(type_) if type_ is not None else (),
    )


def _position(implementation: Implementation) -> int:
    order = (*hookspecs.REGISTRATION_HOOKS, *hookspecs.REQUEST_HOOKS, *hookspecs.LIFECYCLE_HOOKS)
    return order.index(implementation.hook)


def _hook(implementation: Implementation) -> HookDescription:
    name = implementation.hook
    kind: Literal["registration", "request", "lifecycle"] = "lifecycle"
    if name in hookspecs.REGISTRATION_HOOKS:
        kind = "registration"
    elif name in hookspecs.REQUEST_HOOKS:
        kind = "request"
    doc = inspect.getdoc(implementation.function) or inspect.getdoc(getattr(hookspecs, name)) or ""
    return HookDescription(
        name=name,
        kind=kind,
        arguments=tuple(argument.partition("=")[0] for argument in implementation.arguments),
        is_async=implementation.is_async,
        doc=doc.partition("\n")[0],
    )


def _records(plugin: ActivePlugin, *, without_config: bool) -> Iterator[RecordDescription]:
    """``without_config``: its configuration has keys without a default and no table, so hooks that take it are left out."""
    for kind in KINDS:
        implementation = plugin.hooks.get(kind.hook)
        if implementation is None or (without_config and implementation.arguments):
            continue
        for record in plugin_records(plugin, kind):
            yield RecordDescription(
                kind=table_of(kind, record),
                name=record.name,
                api=record.api,
                stability=record.stability,
                description=record.description,
                requires=getattr(record, "requires", {}),
            )
