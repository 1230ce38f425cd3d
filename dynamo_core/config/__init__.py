"""Settings: flags > environment > file > defaults, and where each value came from."""

from dynamo_core.config.fields import Field, settings_fields
from dynamo_core.config.file import DEFAULT_FILE
from dynamo_core.config.origin import Origin
from dynamo_core.config.plugin_settings import PluginField, plugin_fields, plugin_types
from dynamo_core.config.resolution import Resolved, resolve
from dynamo_core.config.selection import DEFAULT_ROUTER, active_plugin_names, check_selection, choose_router
from dynamo_core.config.settings import Settings, setting
from dynamo_core.config.values import parse_engine_arg

__all__ = [
    "DEFAULT_FILE",
    "DEFAULT_ROUTER",
    "Field",
    "Origin",
    "PluginField",
    "Resolved",
    "Settings",
    "active_plugin_names",
    "check_selection",
    "choose_router",
    "parse_engine_arg",
    "plugin_fields",
    "plugin_types",
    "resolve",
    "setting",
    "settings_fields",
]
