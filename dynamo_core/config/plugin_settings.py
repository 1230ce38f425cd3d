"""Settings of plugins: fields of their configuration that have environment names and flags, as the core's settings do."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from dynamo_core.config.fields import Field, settings_fields, struct_fields
from dynamo_core.config.selection import active_plugin_names
from dynamo_core.config.settings import Settings
from dynamo_core.errors import PluginError

if TYPE_CHECKING:
    from dynamo_core.plugins import Process

__all__ = ["PLUGIN_PREFIX", "PluginField", "plugin_fields", "plugin_types"]

PLUGIN_PREFIX = "plugins."


class PluginField(NamedTuple):
    plugin: str
    key: str
    """In ``[plugins.NAME]``."""
    field: Field


def plugin_types(settings: Settings, process: Process, also: Collection[str] = ()) -> dict[str, type[msgspec.Struct]]:
    """Import the plugins that a process with these settings would use, and ``also``, where they are installed → the configuration
    types of those that have one. Raises :class:`~dynamo_core.errors.PluginError` for one that cannot be imported."""
    from dynamo_core.plugins import configuration_types, installed_plugins

    installed = installed_plugins(blocked=settings.no_plugins)
    wanted = dict.fromkeys((*active_plugin_names(settings, process=process, installed=installed), *also))
    return configuration_types(
        [name for name in wanted if name in installed and not installed[name].error and name not in settings.no_plugins]
    )


def plugin_fields(types: Mapping[str, type[msgspec.Struct]]) -> Iterator[PluginField]:
    """Every key of every plugin. Raises :class:`~dynamo_core.errors.PluginError` when two claim one flag or environment name, or
    one is the core's."""
    taken: dict[str, str] = {}
    for field in settings_fields().values():
        for name in (*field.env, field.flag):
            if name is not None:
                taken[name] = "dynamo-core"
    for plugin, type_ in types.items():
        for key, field in struct_fields(type_).items():
            for name in (*field.env, field.flag):
                if name is not None and taken.setdefault(name, plugin) != plugin:
                    other = taken[name]
                    raise PluginError(
                        f"{other} and plugin {plugin!r} both have a setting {name}: leave one out; tell its author."
                    )
            yield PluginField(plugin, key, field)
