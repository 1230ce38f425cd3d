"""Which plugins are installed, by the metadata of their distributions alone."""

from __future__ import annotations

from collections.abc import Collection
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

import msgspec

from dynamo_core.errors import PluginError
from dynamo_core.hookspecs import ENTRY_POINT_GROUP
from dynamo_core.plugins.names import canonical_name, is_plugin_name

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

__all__ = ["PluginInfo", "claimed_plugins", "installed_plugins"]


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
    found: dict[str, PluginInfo] = {}
    for info in _scan(blocked):
        other = found.setdefault(info.name, info)
        if other is not info:
            raise PluginError(_clash(other, info))
    return found


def claimed_plugins(*, blocked: Collection[str] = ()) -> tuple[PluginInfo, ...]:
    """As :func:`installed_plugins`, but those that claim one name are all there, in state ``error`` with what is wrong."""
    infos = _scan(blocked)
    clashes: dict[str, str] = {}
    for one, other in pairwise(infos):
        if one.name == other.name:
            clashes.setdefault(one.name, _clash(one, other))
    return tuple(
        msgspec.structs.replace(info, state="error", error=clashes[info.name]) if info.name in clashes else info for info in infos
    )


def _scan(blocked: Collection[str]) -> list[PluginInfo]:
    """By name; what is there twice (a folder that is twice in ``sys.path``) once."""
    from importlib.metadata import entry_points  # 20 ms, which `dynamo --help` need not pay

    left_out = {canonical_name(name) for name in blocked}
    found: list[PluginInfo] = []
    for entry_point in entry_points(group=ENTRY_POINT_GROUP):
        info = _info(entry_point, left_out)
        if info not in found:
            found.append(info)
    return sorted(found, key=lambda info: info.name)


def _clash(one: PluginInfo, other: PluginInfo) -> str:
    if one.distribution == other.distribution:
        return (
            f"distribution {other.distribution} {other.version} declares plugin {one.name!r} twice, as {one.target} and "
            f"{other.target}: ask its author to keep one of them in its entry points."
        )
    return (
        f"two distributions claim the plugin name {one.name!r}: {one.distribution} {one.version} and "
        f"{other.distribution} {other.version}; uninstall one of them with pip."
    )


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
