"""Which plugins a process needs by its settings, and which router serves."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from dynamo_core.config.settings import Settings
from dynamo_core.errors import PluginError
from dynamo_core.plugins.installed import installed_plugins
from dynamo_core.plugins.names import canonical_name

if TYPE_CHECKING:
    from dynamo_core.plugins import Compiled, Process

__all__ = ["DEFAULT_ROUTER", "active_plugin_names", "check_selection", "choose_router"]

DEFAULT_ROUTER = "round-robin"


def active_plugin_names(settings: Settings, *, process: Process, installed: Collection[str] | None = None) -> tuple[str, ...]:
    """Plugins for :func:`~dynamo_core.plugins.activate`, in order: the providers that the settings name, then ``--plugin``.

    A provider's name activates the plugin of that name. A provider whose plugin has another name comes with ``--plugin``: names
    that are no plugin's are left out here, and looking the provider up says so if nobody provides it. ``installed`` spares the
    scan where the caller has the names.
    """
    installed = installed_plugins() if installed is None else installed
    providers = [settings.discovery_backend, settings.request_plane, settings.event_plane]
    if process != "frontend" and settings.engine is not None:
        providers.append(settings.engine)
    if process != "worker":
        providers.append(settings.router or DEFAULT_ROUTER)
    explicit = [_plugin_name(name, installed) for name in settings.plugins]
    named = [name for name in (_plugin_name(name, installed) for name in providers) if name in installed or name in explicit]
    blocked = {canonical_name(name) for name in settings.no_plugins}
    return tuple(name for name in dict.fromkeys((*named, *explicit)) if name not in blocked)


def _plugin_name(name: str, installed: Collection[str]) -> str:
    return name if name in installed else canonical_name(name)


def choose_router(settings: Settings, compiled: Compiled) -> str:
    """The name of the router provider: ``--router``, else the single active router plugin's, else round-robin.

    Raises :class:`~dynamo_core.errors.PluginError` when there are two to choose from or none.
    """
    if settings.router is not None:
        return _name(compiled, settings.router)
    explicit = {canonical_name(name) for name in settings.plugins}
    candidates = [
        name for name, provider in compiled.routers.items() if provider.plugin in explicit or provider.plugin != DEFAULT_ROUTER
    ]
    if len(candidates) > 1:
        raise PluginError(f"several routers are active ({', '.join(candidates)}): choose one with --router.")
    return _name(compiled, candidates[0] if candidates else DEFAULT_ROUTER)


def _name(compiled: Compiled, router: str) -> str:
    name: str = compiled.router(router).spec.name
    return name


def check_selection(settings: Settings, compiled: Compiled, *, process: Process) -> None:
    """Refuse at start-up what cannot work: a provider that nobody provides, or providers that do not go together.

    Raises :class:`~dynamo_core.errors.PluginError`.
    """
    compiled.discovery_store(settings.discovery_backend)
    compiled.request_plane(settings.request_plane)
    compiled.event_plane(settings.event_plane)
    engine = compiled.engine(settings.engine).spec if process != "frontend" and settings.engine is not None else None
    provider = compiled.router(choose_router(settings, compiled)) if process != "worker" else None
    router = None if provider is None else provider.spec
    if provider is not None and isinstance(provider.spec.factory, type):
        compiled.check_router(provider, provider.spec.factory)
    if engine is not None and router is not None and router.needs_kv_events and not engine.kv_events:
        raise PluginError(
            f"router {router.name!r} needs KV events and engine {engine.name!r} has none: "
            f"choose another router with --router, such as {DEFAULT_ROUTER}."
        )
