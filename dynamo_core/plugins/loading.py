"""Importing one plugin: its functions by hook and the type of its configuration."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import pluggy

from dynamo_core import hookspecs
from dynamo_core.errors import PluginError
from dynamo_core.plugins.hooks import Implementation, blame, find_hooks
from dynamo_core.plugins.installed import PluginInfo, installed_plugins
from dynamo_core.plugins.names import suggestion

__all__ = ["config_type", "configuration_types", "load_plugin", "plugin_object", "specified"]


def specified() -> pluggy.PluginManager:
    """A manager that knows every hook and no plugin."""
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    return manager


def plugin_object(info: PluginInfo) -> object:
    """What the entry point names, imported. Raises :class:`~dynamo_core.errors.PluginError` that says whose fault it is."""
    module, _, attributes = info.target.partition(":")
    try:
        plugin: object = importlib.import_module(module)
        for attribute in filter(None, attributes.split(".")):
            plugin = getattr(plugin, attribute)
    except (Exception, SystemExit) as error:  # noqa: BLE001  # whatever a stranger's module raises is named
        blame(info, f"cannot be imported from {info.target}", error)
    return plugin


def load_plugin(info: PluginInfo, manager: pluggy.PluginManager) -> dict[str, Implementation]:
    """Import it and register its hooks; see :func:`~dynamo_core.plugins.hooks.find_hooks` for what is refused."""
    return find_hooks(info, plugin_object(info), manager)


def configuration_types(names: Sequence[str]) -> dict[str, type[msgspec.Struct]]:
    """Import the plugins ``names`` → the configuration types of those that have one."""
    installed = installed_plugins()
    manager = specified()
    types: dict[str, type[msgspec.Struct]] = {}
    for name in names:
        if name not in installed:
            raise PluginError(f"plugin {name!r} is not installed: {suggestion(name, installed, what='installed plugins')}")
        type_ = config_type(installed[name], load_plugin(installed[name], manager))
        if type_ is not None:
            types[name] = type_
    return types


def config_type(info: PluginInfo, hooks: Mapping[str, Implementation]) -> type[msgspec.Struct] | None:
    """What its ``dynamo_config`` names; ``None`` for a plugin without settings.

    Raises :class:`~dynamo_core.errors.PluginError` for anything but a frozen struct that forbids unknown fields.
    """
    if "dynamo_config" not in hooks:
        return None
    type_: Any = None
    try:
        type_ = hooks["dynamo_config"].function()
    except Exception as error:  # noqa: BLE001  # a stranger's code: named, and the process does not start
        blame(info, "fails in dynamo_config", error)
    if type_ is None:
        return None
    if not (inspect.isclass(type_) and issubclass(type_, msgspec.Struct)):
        raise PluginError(f"plugin {info.label}: dynamo_config must return a msgspec.Struct class, not {type_!r}.")
    if not (type_.__struct_config__.forbid_unknown_fields and type_.__struct_config__.frozen):
        raise PluginError(
            f"plugin {info.label}: its configuration {type_.__name__} must be declared with frozen=True and "
            f"forbid_unknown_fields=True."
        )
    return type_
