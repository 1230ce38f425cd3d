"""What plugins would provide if they were active, for the sentences about names that nobody active provides."""

from __future__ import annotations

from collections.abc import Iterable

from dynamo_core.errors import StartupError
from dynamo_core.plugins.decoding import decode_table
from dynamo_core.plugins.hooks import ActivePlugin
from dynamo_core.plugins.installed import PluginInfo
from dynamo_core.plugins.loading import config_type, load_plugin, specified
from dynamo_core.plugins.providers import KINDS, TABLES, plugin_records, table_of

__all__ = ["inactive_providers"]


def inactive_providers(table: str, infos: Iterable[PluginInfo]) -> dict[str, str]:
    """Name, or alias, → plugin, of the providers of one kind (one of ``TABLES``).

    Imports these plugins, which is cheap by rule; those that cannot be imported, or not without a configuration, are passed over.
    """
    if table not in TABLES:
        raise ValueError(f"{table!r} is no kind of provider")
    found: dict[str, str] = {}
    for info in infos:
        if info.error is None:
            try:
                names = _names(table, info)
            except StartupError:
                continue
            found.update(dict.fromkeys(names, info.name))
    return found


def _names(table: str, info: PluginInfo) -> list[str]:
    hooks = load_plugin(info, specified())
    type_ = config_type(info, hooks)
    config = None if type_ is None else decode_table(type_, {}, path=f"plugins.{info.name}", source="its defaults")
    plugin = ActivePlugin(info, hooks, config)
    return [
        name
        for kind in KINDS
        if kind.name in (table, "parser")
        for record in plugin_records(plugin, kind)
        if table_of(kind, record) == table
        for name in (record.name, *getattr(record, "aliases", ()))
    ]
