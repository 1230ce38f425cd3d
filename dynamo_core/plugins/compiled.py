"""The active plugins of one process, compiled: what the rest of the core calls, without pluggy."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, NoReturn

import msgspec

from dynamo_core.errors import PluginError
from dynamo_core.plugins.faults import Faults
from dynamo_core.plugins.filters import OpenFilter
from dynamo_core.plugins.hooks import blame
from dynamo_core.plugins.installed import PluginInfo
from dynamo_core.plugins.inventory import inactive_providers
from dynamo_core.plugins.lifecycle import Lifecycle
from dynamo_core.plugins.names import canonical_name, suggestion
from dynamo_core.plugins.observers import Observe, Observer, observation
from dynamo_core.plugins.providers import Provider
from dynamo_core.plugins.router_check import router_faults
from dynamo_core.plugins.watchdog import LoopWatchdog
from dynamo_core.specs import HttpSpec, MetricsContext

__all__ = ["Compiled"]


class Compiled(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """Immutable but for its fault counter and for which plugins are started. An empty seam is ``None`` and costs one test."""

    plugins: tuple[PluginInfo, ...]
    """The active ones, in the order in which they were named."""
    engines: Mapping[str, Provider]
    routers: Mapping[str, Provider]
    discovery: Mapping[str, Provider]
    request_planes: Mapping[str, Provider]
    event_planes: Mapping[str, Provider]
    planners: Mapping[str, Provider]
    planner_stages: Mapping[str, Provider]
    predictors: Mapping[str, Provider]
    connectors: Mapping[str, Provider]
    pool_selectors: Mapping[str, Provider]
    prefill_policies: Mapping[str, Provider]
    tool_parsers: Mapping[str, Provider]
    reasoning_parsers: Mapping[str, Provider]
    commands: Mapping[str, Provider]
    http: tuple[HttpSpec, ...]
    metrics: tuple[Provider, ...]
    authenticate: Callable[..., Any] | None
    """``(request) -> Principal``, to be awaited if ``authenticate_async``; raises what denies the request."""
    authenticate_async: bool
    rate_limit: Callable[..., Any] | None
    """``(request, principal) -> None``, to be awaited if ``rate_limit_async``."""
    rate_limit_async: bool
    prepare: Callable[..., Any] | None
    """``(prepared_request) -> None``, to be awaited if ``prepare_async``."""
    prepare_async: bool
    output_filter: OpenFilter | None
    """``(output_stream) -> filter | None``, once a stream; raises what ends the request, as does the filter."""
    finished: Observe | None
    """``(summary) -> None``; never raises."""
    faults: Faults
    observers: tuple[Observer, ...] = ()
    """What ``finished`` tells."""
    lifecycle: Lifecycle
    installed: Mapping[str, PluginInfo]
    """All installed plugins, for the sentences about unknown names."""
    blocked: frozenset[str] = frozenset()
    """Plugins that ``--no-plugin`` leaves out."""

    def engine(self, name: str) -> Provider:
        """Raises :class:`~dynamo_core.errors.PluginError` that says why there is none and what to do, as do those below."""
        return self._find("engine", self.engines, name)

    def router(self, name: str) -> Provider:
        """Also by an alias: a router's own, or Dynamo's mode name (``kv``, ``round_robin``)."""
        for provider in self.routers.values():
            if name in provider.spec.aliases and name not in self.routers:
                return provider
        return self._find("router", self.routers, name)

    def discovery_store(self, name: str) -> Provider:
        return self._find("discovery store", self.discovery, name)

    def request_plane(self, name: str) -> Provider:
        return self._find("request plane", self.request_planes, name)

    def event_plane(self, name: str) -> Provider:
        return self._find("event plane", self.event_planes, name)

    def planner(self, name: str) -> Provider:
        return self._find("planner", self.planners, name)

    def predictor(self, name: str) -> Provider:
        return self._find("predictor", self.predictors, name)

    def connector(self, name: str) -> Provider:
        return self._find("connector", self.connectors, name)

    def pool_selector(self, name: str) -> Provider:
        return self._find("pool selector", self.pool_selectors, name)

    def prefill_policy(self, name: str) -> Provider:
        return self._find("prefill policy", self.prefill_policies, name)

    def tool_parser(self, name: str) -> Provider:
        return self._find("tool parser", self.tool_parsers, name)

    def reasoning_parser(self, name: str) -> Provider:
        return self._find("reasoning parser", self.reasoning_parsers, name)

    def stages(self, stage: str) -> tuple[Provider, ...]:
        """The providers of one planner stage in the order in which they run."""
        chosen = [provider for provider in self.planner_stages.values() if provider.spec.stage == stage]
        return tuple(sorted(chosen, key=lambda provider: int(provider.spec.priority)))

    def command(self, name: str) -> Provider:
        return self._find("command", self.commands, name)

    async def startup(self, process: str) -> None:
        """Call ``dynamo_startup`` of every plugin; see :class:`~dynamo_core.plugins.lifecycle.Lifecycle`."""
        await self.lifecycle.startup(process)

    async def shutdown(self, process: str) -> None:
        await self.lifecycle.shutdown(process)

    def watchdog(self) -> LoopWatchdog:
        """A context manager that names the plugin that blocks the running event loop; for the time that a process serves."""
        return LoopWatchdog(self.plugins)

    def start_metrics(self, context: MetricsContext) -> Observe | None:
        """Make every plugin's collectors, once a registry; returns ``finished`` with their observers added.

        Raises :class:`~dynamo_core.errors.PluginError` for a factory that raises, as with a metric name that is taken.
        """
        observers = list(self.observers)
        for provider in self.metrics:
            try:
                function = provider.spec.factory(provider.config, context)
            except Exception as error:  # noqa: BLE001  # a stranger's code: named, and the process does not start
                self.blame(provider, "metrics", error)
            if function is not None:
                observers.append(Observer(provider.plugin, "dynamo_metrics", function))
        return observation(observers, self.faults)

    def check_router(self, provider: Provider, router: object) -> None:
        """Of a router that was made, or the class that will make it. Raises :class:`~dynamo_core.errors.PluginError`."""
        for fault in router_faults(router):
            label = next((info.label for info in self.plugins if info.name == provider.plugin), provider.plugin)
            raise PluginError(f"plugin {label}: its router {provider.spec.name!r} {fault}.")

    def blame(self, provider: Provider, kind: str, error: Exception) -> NoReturn:
        """Raise the :class:`~dynamo_core.errors.PluginError` for a factory that raised ``error``: whose it is and what to do."""
        info = next(info for info in self.plugins if info.name == provider.plugin)
        blame(info, f"cannot make its {kind} {provider.spec.name!r}", error)

    def _find(self, kind: str, providers: Mapping[str, Provider], name: str) -> Provider:
        canonical = canonical_name(name)
        provider = providers.get(name) or providers.get(canonical)
        if provider is None:
            raise PluginError(_why_missing(kind, canonical, providers, self))
        return provider


_TABLES = {"discovery store": "discovery"}
"""The kinds whose name for people is not the table's."""


def _why_missing(kind: str, name: str, providers: Collection[str], compiled: Compiled) -> str:
    if name in compiled.blocked:
        return f"{kind} {name!r} is left out by --no-plugin {name}: drop that, or name another {kind}."
    active = {info.name for info in compiled.plugins}
    rest = [info for plugin, info in compiled.installed.items() if plugin not in active | compiled.blocked]
    inactive = inactive_providers(_TABLES.get(kind, kind.replace(" ", "-")), rest)
    if name in inactive:
        return f"{kind} {name!r} is not active: add --plugin {inactive[name]}."
    known = {*providers, *inactive}
    hint = suggestion(name, known, what=f"installed {kind.removesuffix('y')}{'ies' if kind.endswith('y') else 's'}")
    if name in active or name in compiled.installed:
        return f"plugin {name!r} provides no {kind}: {hint}"
    return f"{kind} {name!r} is unknown: {hint}"
