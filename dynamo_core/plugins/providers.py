"""Registration: the records that plugins yield, checked and sorted by kind and name."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

import dynamo_core
from dynamo_core import specs
from dynamo_core.errors import PluginError
from dynamo_core.plugins.hooks import ActivePlugin, blame
from dynamo_core.plugins.installed import PluginInfo
from dynamo_core.plugins.names import is_plugin_name

__all__ = ["KINDS", "Kind", "Provider", "Providers", "collect_providers"]


class Provider(msgspec.Struct, frozen=True, eq=False):
    """One registered record and what its factory is called with: ``spec.factory(config, context)``."""

    spec: Any
    plugin: str
    config: Any = None


class Kind(NamedTuple):
    """One registration hook."""

    name: str
    """As in ``SUPPORTED_API`` and in ``provides``."""
    hook: str
    record: type[msgspec.Struct]


KINDS: tuple[Kind, ...] = (
    Kind("engine", "dynamo_engines", specs.EngineSpec),
    Kind("router", "dynamo_routers", specs.RouterSpec),
    Kind("discovery", "dynamo_discovery", specs.DiscoverySpec),
    Kind("request-plane", "dynamo_request_planes", specs.RequestPlaneSpec),
    Kind("event-plane", "dynamo_event_planes", specs.EventPlaneSpec),
    Kind("authenticator", "dynamo_authenticators", specs.AuthenticatorSpec),
    Kind("rate-limiter", "dynamo_rate_limiters", specs.RateLimiterSpec),
    Kind("metrics", "dynamo_metrics", specs.MetricsSpec),
    Kind("http", "dynamo_http_routes", specs.HttpSpec),
    Kind("command", "dynamo_commands", specs.CommandSpec),
)

_FUNCTION_PROVIDERS = {"authenticator": "dynamo_authenticate", "rate-limiter": "dynamo_rate_limit"}
"""A request hook's function is a provider of this kind, named after its plugin."""


class Providers(NamedTuple):
    by_kind: Mapping[str, Mapping[str, Provider]]
    """Kind → name → provider, in plugin order."""
    provides: Mapping[str, tuple[str, ...]]
    """Plugin → what :attr:`PluginInfo.provides` shows."""


def collect_providers(plugins: Sequence[ActivePlugin]) -> Providers:
    """Call every registration hook once.

    Raises :class:`~dynamo_core.errors.PluginError` for what raises, is not a record of its hook, has a bad or taken name, was
    written for another contract version, or needs a module that is not installed.
    """
    by_kind: dict[str, dict[str, Provider]] = {kind.name: {} for kind in KINDS}
    owners: dict[tuple[str, str], PluginInfo] = {}
    provides: dict[str, tuple[str, ...]] = {}
    for plugin in plugins:
        shown: list[str] = []
        for kind in KINDS:
            for record in _records(plugin, kind):
                _check(plugin.info, kind, record)
                for name in (record.name, *getattr(record, "aliases", ())):
                    _claim(owners, kind.name, name, plugin.info)
                by_kind[kind.name][record.name] = Provider(record, plugin.info.name, plugin.config)
                shown.append(f"{kind.name}:{record.name}")
        for kind_name, hook in _FUNCTION_PROVIDERS.items():
            if hook in plugin.hooks:
                _claim(owners, kind_name, plugin.info.name, plugin.info)
                shown.append(f"{kind_name}:{plugin.info.name}")
        provides[plugin.info.name] = (*shown, *_other_hooks(plugin))
    return Providers(by_kind, provides)


def _records(plugin: ActivePlugin, kind: Kind) -> Iterable[Any]:
    implementation = plugin.hooks.get(kind.hook)
    if implementation is None:
        return ()
    result: Any = None
    try:
        result = implementation.function()
        records = list(result)
    except Exception as error:  # a stranger's code: whatever it raises is named and ends the start-up
        if isinstance(error, TypeError) and not isinstance(result, Iterable):
            raise PluginError(_wrong_result(plugin.info, kind, result)) from error
        blame(plugin.info, f"fails in {kind.hook}", error)
    for record in records:
        if not isinstance(record, kind.record):
            raise PluginError(_wrong_result(plugin.info, kind, record))
    return records


def _wrong_result(info: PluginInfo, kind: Kind, value: object) -> str:
    record = kind.record.__name__
    return f"plugin {info.label}: {kind.hook} gives {type(value).__name__}: yield {record} records, or return a list of them."


def _check(info: PluginInfo, kind: Kind, record: Any) -> None:
    if not isinstance(record.name, str) or not is_plugin_name(record.name):
        raise PluginError(
            f"plugin {info.label}: {kind.name} name {record.name!r} must be lower case letters, digits and single hyphens."
        )
    supported = specs.SUPPORTED_API[kind.name]
    if record.api not in supported:
        newer = record.api > max(supported)
        todo = "update dynamo-core" if newer else f"update {info.distribution or info.name}"
        raise PluginError(
            f"plugin {info.label}: {kind.name} {record.name!r} is written for version {record.api} of the {kind.name} contract, "
            f"and dynamo-core {dynamo_core.__version__} has {_listed(supported)}: {todo}."
        )
    for module, command in getattr(record, "requires", {}).items():
        if not _importable(module):
            raise PluginError(f"{kind.name} {record.name!r} needs module {module!r}, which is not installed here: {command}")


def _listed(versions: Iterable[int]) -> str:
    return "version " + ", ".join(str(version) for version in sorted(versions))


def _importable(module: str) -> bool:
    top = module.partition(".")[0]  # a dotted name would import its parents
    if top in sys.modules:
        return sys.modules[top] is not None
    try:
        return importlib.util.find_spec(top) is not None
    except (ImportError, ValueError):
        return False


def _claim(owners: dict[tuple[str, str], PluginInfo], kind: str, name: str, info: PluginInfo) -> None:
    other = owners.get((kind, name))
    if other is info:
        raise PluginError(f"plugin {info.label} provides {kind} {name!r} twice: ask its author to rename one.")
    if other is not None:
        raise PluginError(f"plugins {other.label} and {info.label} both provide {kind} {name!r}: leave one out with --no-plugin.")
    owners[kind, name] = info


def _other_hooks(plugin: ActivePlugin) -> tuple[str, ...]:
    shown = {kind.hook for kind in KINDS} | set(_FUNCTION_PROVIDERS.values()) | {"dynamo_config"}
    return tuple(f"hook:{hook}" for hook in sorted(plugin.hooks) if hook not in shown)
