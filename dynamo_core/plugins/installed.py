"""Which plugins are installed, by the metadata of their distributions alone."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Literal

import msgspec

from dynamo_core.errors import PluginError
from dynamo_core.hookspecs import ENTRY_POINT_GROUP
from dynamo_core.plugins.names import canonical_name, is_plugin_name

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

__all__ = ["PluginInfo", "installed_plugins"]


class PluginInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One installed plugin, as ``dynamo plugins list`` shows it."""

    name: str
    version: str = ""
    """Of its distribution, as is ``distribution``; both empty when the metadata is damaged."""
    distribution: str = ""
    target: str
    """``module`` or ``module:attribute`` of the entry point."""
    state: Literal["active", "available", "blocked", "error"] = "available"
    provides: tuple[str, ...] = ()
    """``kind:name`` of each provider and ``hook:name`` of each other hook; known only of active plugins."""
    error: str | None = None

    @property
    def label(self) -> str:
        """Name and origin, for sentences: ``'acme' (acme-plugin 1.2)``."""
        origin = f"{self.distribution} {self.version}".strip()
        return f"{self.name!r} ({origin})" if origin else repr(self.name)


def installed_plugins(*, blocked: Collection[str] = ()) -> dict[str, PluginInfo]:
    """Every installed plugin by name, in alphabetical order; imports none of them. Costs a scan of ``sys.path`` (milliseconds).

    Raises :class:`~dynamo_core.errors.PluginError` when two distributions claim one name.
    """
    from importlib.metadata import entry_points  # 20 ms, which `dynamo --help` need not pay

    left_out = {canonical_name(name) for name in blocked}
    found: dict[str, PluginInfo] = {}
    for entry_point in entry_points(group=ENTRY_POINT_GROUP):
        info = _info(entry_point, left_out)
        other = found.setdefault(info.name, info)
        if other is info or other == info:
            continue
        if other.distribution == info.distribution:
            raise PluginError(
                f"distribution {info.distribution} {info.version} declares plugin {info.name!r} twice, as {other.target} and "
                f"{info.target}: ask its author to keep one of them in its entry points."
            )
        raise PluginError(
            f"two distributions claim the plugin name {info.name!r}: {other.distribution} {other.version} and "
            f"{info.distribution} {info.version}; uninstall one of them with pip."
        )
    return dict(sorted(found.items()))


def _info(entry_point: EntryPoint, left_out: Collection[str]) -> PluginInfo:
    distribution, version = _origin(entry_point)
    name = entry_point.name
    error = None if is_plugin_name(name) else "a plugin's name has lower case letters, digits and hyphens only"
    state: Literal["available", "blocked", "error"] = "blocked" if name in left_out else "available"
    return PluginInfo(
        name=name,
        version=version,
        distribution=distribution,
        target=f"{entry_point.module}:{entry_point.attr}" if entry_point.attr else entry_point.module,
        state="error" if error else state,
        error=error,
    )


def _origin(entry_point: EntryPoint) -> tuple[str, str]:
    distribution = entry_point.dist
    if distribution is None:
        return "", ""
    try:
        return distribution.name, distribution.version
    except (KeyError, TypeError, AttributeError):  # a .dist-info folder without METADATA, left by a broken uninstall
        return "", ""
