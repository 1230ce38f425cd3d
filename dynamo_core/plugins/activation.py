"""From names to :class:`Compiled`: import exactly what is named, check it, and settle every call once."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, Literal, TypeAlias

import msgspec

from dynamo_core import hookspecs
from dynamo_core.errors import ConfigError, PluginError
from dynamo_core.plugins.chains import Step, authentication, procedure
from dynamo_core.plugins.compiled import Compiled
from dynamo_core.plugins.decoding import decode_table
from dynamo_core.plugins.faults import Faults
from dynamo_core.plugins.filters import FilterSource, OpenFilter, filtering
from dynamo_core.plugins.hooks import ActivePlugin, Implementation, bind, blame, is_async
from dynamo_core.plugins.installed import PluginInfo, installed_plugins
from dynamo_core.plugins.lifecycle import Lifecycle, Participant
from dynamo_core.plugins.loading import config_type, load_plugin, specified
from dynamo_core.plugins.names import canonical_name, suggestion
from dynamo_core.plugins.observers import Observer, observation
from dynamo_core.plugins.providers import Providers, collect_providers

__all__ = ["Process", "activate", "check_tables"]

_log = logging.getLogger(__name__)

Process: TypeAlias = Literal["serve", "frontend", "worker"]


def activate(
    names: Sequence[str],
    *,
    blocked: Collection[str] = (),
    tables: Mapping[str, Mapping[str, Any]] | None = None,
    source: str = "dynamo.toml",
    process: Process = "frontend",
    installed: Mapping[str, PluginInfo] | None = None,
) -> Compiled:
    """Import the plugins ``names`` but those ``blocked``, in order, and no other; check and compile them.

    ``tables`` are the ``[plugins.NAME]`` tables of the file ``source``. Factories of authenticators and rate limiters are called
    for a ``frontend`` only: no other process asks them. ``installed`` spares the scan for plugins.

    Raises :class:`~dynamo_core.errors.StartupError` in one sentence that says who, what and what to do. Takes as long as the
    imports take; blocks.
    """
    installed = installed_plugins(blocked=blocked) if installed is None else installed
    left_out = frozenset(canonical_name(name) for name in blocked)
    wanted = _wanted(names, left_out, installed)
    tables = tables or {}
    _check_tables(tables, wanted, installed, source)
    manager = specified()
    plugins = []
    for name in wanted:
        info = installed[name]
        hooks = load_plugin(info, manager)
        plugins.append(ActivePlugin(info, hooks, _config(info, hooks, tables, source)))
    providers = collect_providers(plugins)
    return _compile(plugins, providers, process, installed=installed, blocked=left_out)


def _wanted(names: Sequence[str], left_out: Collection[str], installed: Mapping[str, PluginInfo]) -> list[str]:
    for name in left_out:
        if name not in installed:
            hint = suggestion(name, installed, what="installed plugins")
            _log.warning("--no-plugin %s leaves nothing out, since no such plugin is installed: %s", name, hint)
    wanted = []
    for given in dict.fromkeys(names):
        name = given if given in installed else canonical_name(given)
        if name in left_out or name in wanted:
            continue
        if name not in installed:
            raise PluginError(f"plugin {given!r} is not installed: {suggestion(name, installed, what='installed plugins')}")
        if installed[name].error:
            raise PluginError(f"plugin {installed[name].label} cannot be used: {installed[name].error}; tell its author.")
        wanted.append(name)
    return wanted


def check_tables(tables: Collection[str], installed: Collection[str], source: str) -> None:
    """Raises :class:`~dynamo_core.errors.ConfigError` for a table ``[plugins.NAME]`` of a plugin that is not installed."""
    for name in tables:
        if name not in installed:
            hint = suggestion(name, installed, what="installed plugins")
            raise ConfigError(f"{source}: [plugins.{name}] names a plugin that is not installed: {hint}")


def _check_tables(tables: Mapping[str, Any], wanted: Collection[str], installed: Mapping[str, PluginInfo], source: str) -> None:
    check_tables(tables, installed, source)
    for name in tables:
        if name not in wanted:
            _log.info("%s: [plugins.%s] is ignored, since plugin %s is not active", source, name, name)


def _config(
    info: PluginInfo, hooks: Mapping[str, Implementation], tables: Mapping[str, Mapping[str, Any]], source: str
) -> msgspec.Struct | None:
    table = tables.get(info.name, {})
    if not isinstance(table, Mapping):
        raise ConfigError(f"{source}: plugins.{info.name} is {table!r}, but must be a table: write [plugins.{info.name}].")
    type_ = config_type(info, hooks)
    if type_ is None:
        if table:
            raise ConfigError(f"{source}: plugin {info.label} has no settings: remove [plugins.{info.name}].")
        return None
    return decode_table(type_, table, path=f"plugins.{info.name}", source=source)


def _compile(
    plugins: Sequence[ActivePlugin],
    providers: Providers,
    process: Process,
    *,
    installed: Mapping[str, PluginInfo],
    blocked: frozenset[str],
) -> Compiled:
    faults = Faults()
    ours = plugins if process == "frontend" else ()
    authenticate = authentication(_steps(ours, providers, "authenticator", "dynamo_authenticate", ("request",)), faults)
    limits = _steps(ours, providers, "rate-limiter", "dynamo_rate_limit", ("request", "principal"))
    rate_limit = procedure(limits, faults, arguments=2)
    prepare = procedure(_steps(ours, providers, "", "dynamo_prepare", ("request",)), faults, arguments=1)
    observers = tuple(
        Observer(plugin.info.name, implementation.hook, bind(implementation, ("summary",), plugin.config))
        for plugin, implementation in _ordered(ours, "dynamo_request_finished")
    )
    by_kind = providers.by_kind
    return Compiled(
        plugins=tuple(
            msgspec.structs.replace(plugin.info, state="active", provides=providers.provides[plugin.info.name])
            for plugin in plugins
        ),
        engines=by_kind["engine"],
        routers=by_kind["router"],
        discovery=by_kind["discovery"],
        request_planes=by_kind["request-plane"],
        event_planes=by_kind["event-plane"],
        planners=by_kind["planner"],
        planner_stages=by_kind["planner-stage"],
        predictors=by_kind["predictor"],
        connectors=by_kind["connector"],
        pool_selectors=by_kind["pool-selector"],
        prefill_policies=by_kind["prefill-policy"],
        tool_parsers=by_kind["tool-parser"],
        reasoning_parsers=by_kind["reasoning-parser"],
        commands=by_kind["command"],
        http=tuple(provider.spec for provider in by_kind["http"].values()),
        metrics=tuple(by_kind["metrics"].values()),
        authenticate=authenticate.function,
        authenticate_async=authenticate.is_async,
        rate_limit=rate_limit.function,
        rate_limit_async=rate_limit.is_async,
        prepare=prepare.function,
        prepare_async=prepare.is_async,
        output_filter=_output_filter(ours, providers, faults),
        finished=observation(observers, faults),
        faults=faults,
        observers=observers,
        lifecycle=Lifecycle([_participant(plugin) for plugin in plugins], faults),
        installed=installed,
        blocked=blocked,
    )


def _ordered(plugins: Sequence[ActivePlugin], hook: str) -> Iterator[tuple[ActivePlugin, Implementation]]:
    """Plugin order, with ``tryfirst`` before and ``trylast`` after the others."""
    pairs = [(plugin, plugin.hooks[hook]) for plugin in plugins if hook in plugin.hooks]
    return iter(sorted(pairs, key=lambda pair: pair[1].tier))


def _steps(plugins: Sequence[ActivePlugin], providers: Providers, kind: str, hook: str, offered: tuple[str, ...]) -> list[Step]:
    """The functions of ``hook`` and what the registered factories of ``kind`` make, in plugin order by tier."""
    ranked: list[tuple[int, Step]] = []
    registration = {"authenticator": "dynamo_authenticators", "rate-limiter": "dynamo_rate_limiters"}.get(kind, "")
    for plugin in plugins:
        for function in _made(plugin, providers, kind):
            step = Step(plugin.info.name, registration, function, is_async(function))
            ranked.append((plugin.hooks[registration].tier, step))
        if implementation := plugin.hooks.get(hook):
            step = Step(plugin.info.name, hook, bind(implementation, offered, plugin.config), implementation.is_async)
            ranked.append((implementation.tier, step))
    return [step for _, step in sorted(ranked, key=lambda pair: pair[0])]


def _output_filter(plugins: Sequence[ActivePlugin], providers: Providers, faults: Faults) -> OpenFilter | None:
    """The registered output filters, in plugin order by tier."""
    sources = []
    for plugin, _ in _ordered(plugins, "dynamo_output_filters"):
        for function in _made(plugin, providers, "output-filter"):
            if is_async(function):
                raise PluginError(f"plugin {plugin.info.label}: an output filter is opened without await, so use def.")
            sources.append(FilterSource(plugin.info.name, function))
    return filtering(sources, faults)


def _made(plugin: ActivePlugin, providers: Providers, kind: str) -> Iterator[Callable[..., Any]]:
    """What the factories of one plugin's records of ``kind`` make."""
    for provider in providers.by_kind.get(kind, {}).values():
        if provider.plugin == plugin.info.name:
            yield _make(plugin.info, f"{kind} {provider.spec.name!r}", provider.spec.factory, provider.config)


def _make(info: PluginInfo, what: str, factory: Callable[[Any], Any], config: Any) -> Callable[..., Any]:
    try:
        function = factory(config)
    except Exception as error:  # noqa: BLE001  # a stranger's code: named, and the process does not start
        blame(info, f"cannot make its {what}", error)
    if not callable(function):
        raise PluginError(f"plugin {info.label}: the factory of {what} gives {type(function).__name__}, not a function.")
    return function  # type: ignore[no-any-return]  # callable() narrows Any to Callable[..., object]


def _participant(plugin: ActivePlugin) -> Participant:
    startup, shutdown = (plugin.hooks.get(hook) for hook in hookspecs.LIFECYCLE_HOOKS)
    return Participant(
        plugin.info,
        startup and bind(startup, ("process",), plugin.config),
        shutdown and bind(shutdown, ("process",), plugin.config),
    )
