"""``dynamo --version``: the core, active plugins and engines found."""

from __future__ import annotations

from collections.abc import Sequence

from dynamo_core import __version__
from dynamo_core.errors import StartupError

__all__ = ["version_text"]


def version_text(plugins: Sequence[str]) -> str:
    """Works whatever is wrong with the configuration: what cannot be told is one sentence."""
    from dynamo_core.config import active_plugin_names, resolve
    from dynamo_core.launcher.engines import find_engines
    from dynamo_core.plugins import installed_plugins

    lines = [f"dynamo {__version__}"]
    blocked: tuple[str, ...] = ()
    try:
        settings = resolve({"plugins": tuple(plugins)}).settings
        blocked = settings.no_plugins
        installed = installed_plugins(blocked=blocked)
        names = active_plugin_names(settings, process="serve", installed=installed)
        shown = [f"{name} {installed[name].version}" if name in installed else f"{name} (not installed)" for name in names]
        lines.append(f"active plugins: {', '.join(shown)}")
    except StartupError as error:
        lines.append(f"active plugins: {error.message}")
    found = find_engines(blocked=blocked)
    usable = [f"{engine.name} ({engine.plugin} {engine.version})" for engine in found if engine.usable]
    lines.append(f"engines: {', '.join(usable)}")
    lines += [f"  {engine.name}: {engine.problem}" for engine in found if not engine.usable]
    return "\n".join(lines)
