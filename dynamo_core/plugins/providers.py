"""Registration: the records that plugins yield, checked and sorted by kind and name."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, get_args

import msgspec

import dynamo_core
from dynamo_core import specs
from dynamo_core.errors import PluginError
from dynamo_core.plugins.hooks import ActivePlugin, bind, blame
from dynamo_core.plugins.installed import PluginInfo
from dynamo_core.plugins.names import is_plugin_name

__all__ = [
    "KINDS",
    "TABLES",
    "Kind",
    "Provider",
    "Providers",
    "check_requirements",
    "collect_providers",
    "plugin_records",
    "table_of",
]


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
    factory_takes: tuple[str, ...] = ("config", "context")
    """What the record's factory is called with."""


KINDS: tuple[Kind, ...] = (
    Kind("engine", "dynamo_engines", specs.EngineSpec),
    Kind("router", "dynamo_routers", specs.RouterSpec),
    Kind("discovery", "dynamo_discovery", specs.DiscoverySpec),
    Kind("request-plane", "dynamo_request_planes", specs.RequestPlaneSpec),
    Kind("event-plane", "dynamo_event_planes", specs.EventPlaneSpec),
    Kind("planner", "dynamo_planners", specs.PlannerSpec),
    Kind("planner-stage", "dynamo_planner_stages", specs.PlannerStageSpec),
    Kind("predictor", "dynamo_predictors", specs.PredictorSpec),
    Kind("connector", "dynamo_connectors", specs.ConnectorSpec),
    Kind("pool-selector", "dynamo_pool_selectors", specs.PoolSelectorSpec),
    Kind("prefill-policy", "dynamo_prefill_policies", specs.PrefillPolicySpec),
    Kind("parser", "dynamo_parsers", specs.ParserSpec),
    Kind("authenticator", "dynamo_authenticators", specs.AuthenticatorSpec, ("config",)),
    Kind("rate-limiter", "dynamo_rate_limiters", specs.RateLimiterSpec, ("config",)),
    Kind("output-filter", "dynamo_output_filters", specs.OutputFilterSpec, ("config",)),
    Kind("metrics", "dynamo_metrics", specs.MetricsSpec),
    Kind("http", "dynamo_http_routes", specs.HttpSpec, ()),
    Kind("command", "dynamo_commands", specs.CommandSpec, ()),
)

_PARSER_TABLES = {"tool-calls": "tool-parser", "reasoning": "reasoning-parser"}

TABLES: tuple[str, ...] = (*(kind.name for kind in KINDS if kind.name != "parser"), *_PARSER_TABLES.values())
"""The name spaces of providers: each kind is one, but tool and reasoning parsers may share names."""

_STABILITIES = f"choose one of {', '.join(get_args(specs.Stability))}"

_FUNCTION_PROVIDERS = {"authenticator": "dynamo_authenticate", "rate-limiter": "dynamo_rate_limit"}
"""A request hook's function is a provider of this kind, named after its plugin."""


class Providers(NamedTuple):
    by_kind: Mapping[str, Mapping[str, Provider]]
    """Table (see :data:`TABLES`) → name → provider, in plugin order."""
    provides: Mapping[str, tuple[str, ...]]
    """Plugin → what :attr:`PluginInfo.provides` shows."""


def collect_providers(plugins: Sequence[ActivePlugin]) -> Providers:
    """Call every registration hook once.

    Raises :class:`~dynamo_core.errors.PluginError` for what raises, is not a record of its hook, has a bad or taken name, was
    written for another contract version, or needs a module that is not installed.
    """
    by_kind: dict[str, dict[str, Provider]] = {table: {} for table in TABLES}
    owners: dict[tuple[str, str], PluginInfo] = {}
    provides: dict[str, tuple[str, ...]] = {}
    for plugin in plugins:
        shown: list[str] = []
        for kind in KINDS:
            for record in plugin_records(plugin, kind):
                check_requirements(kind, record)
                table = table_of(kind, record)
                for name in (record.name, *getattr(record, "aliases", ())):
                    _claim(owners, table, name, plugin.info)
                by_kind[table][record.name] = Provider(record, plugin.info.name, plugin.config)
                shown.append(f"{table}:{record.name}")
        for kind_name, hook in _FUNCTION_PROVIDERS.items():
            if hook in plugin.hooks:
                _claim(owners, kind_name, plugin.info.name, plugin.info)
                shown.append(f"{kind_name}:{plugin.info.name}")
        provides[plugin.info.name] = (*shown, *_other_hooks(plugin))
    return Providers(by_kind, provides)


def table_of(kind: Kind, record: Any) -> str:
    return _PARSER_TABLES[record.parses] if kind.name == "parser" else kind.name


def plugin_records(plugin: ActivePlugin, kind: Kind) -> Sequence[Any]:
    """What a plugin yields from the registration hook of ``kind``, checked but for what it requires of this machine."""
    implementation = plugin.hooks.get(kind.hook)
    if implementation is None:
        return []
    result: Any = None
    try:
        result = bind(implementation, ("config",), plugin.config)(plugin.config)
        records = list(result)
    except Exception as error:  # a stranger's code: whatever it raises is named and ends the start-up
        if isinstance(error, TypeError) and not isinstance(result, Iterable):
            raise PluginError(_wrong_result(plugin.info, kind, result)) from error
        blame(plugin.info, f"fails in {kind.hook}", error)
    for record in records:
        if not isinstance(record, kind.record):
            raise PluginError(_wrong_result(plugin.info, kind, record))
        _check(plugin.info, kind, record)
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
    if record.stability not in get_args(specs.Stability):
        raise PluginError(f"plugin {info.label}: {kind.name} {record.name!r} has stability {record.stability!r}: {_STABILITIES}.")
    if kind.name == "parser" and record.parses not in _PARSER_TABLES:
        raise PluginError(
            f"plugin {info.label}: parser {record.name!r} must parse 'tool-calls' or 'reasoning', not {record.parses!r}."
        )


def check_requirements(kind: Kind, record: Any) -> None:
    """Raises :class:`~dynamo_core.errors.PluginError` with the pip line for a module that a provider needs and is not here."""
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
