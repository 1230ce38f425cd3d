"""Find, activate, check and compile plugins."""

from dynamo_core.plugins.activation import Process, activate, check_tables
from dynamo_core.plugins.compiled import Compiled
from dynamo_core.plugins.decoding import decode_table, describe_type
from dynamo_core.plugins.description import PluginDescription, describe_plugin
from dynamo_core.plugins.faults import Faults
from dynamo_core.plugins.installed import PluginInfo, claimed_plugins, installed_plugins
from dynamo_core.plugins.loading import configuration_types
from dynamo_core.plugins.names import canonical_name, is_plugin_name, nearest_name, suggestion
from dynamo_core.plugins.observers import Observer, observation
from dynamo_core.plugins.providers import Provider
from dynamo_core.plugins.watchdog import LoopWatchdog

__all__ = [
    "Compiled",
    "Faults",
    "LoopWatchdog",
    "Observer",
    "PluginDescription",
    "PluginInfo",
    "Process",
    "Provider",
    "activate",
    "canonical_name",
    "check_tables",
    "claimed_plugins",
    "configuration_types",
    "decode_table",
    "describe_plugin",
    "describe_type",
    "installed_plugins",
    "is_plugin_name",
    "nearest_name",
    "observation",
    "suggestion",
]
