"""Flags over environment over file over defaults, with the origin of every value."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from dynamo_core.config.fields import Field, settings_fields
from dynamo_core.config.file import ConfigFile, read_file
from dynamo_core.config.origin import Origin
from dynamo_core.config.plugin_settings import PLUGIN_PREFIX, plugin_fields, plugin_types
from dynamo_core.config.settings import Settings
from dynamo_core.config.values import convert, parse_text

if TYPE_CHECKING:
    from dynamo_core.plugins import Process

__all__ = ["Resolved", "resolve"]


class Resolved(msgspec.Struct, frozen=True):
    settings: Settings
    origins: Mapping[str, Origin]
    """Setting → origin; ``engine_args.KEY``, ``plugins.NAME`` and, where plugins were asked, ``plugins.NAME.KEY`` have entries of
    their own."""
    plugin_tables: Mapping[str, Mapping[str, Any]]
    """``[plugins.NAME]``, and over it what flags and environment say of the active plugins; unchecked: theirs to decode."""
    file: str | None
    """The configuration file that was read."""
    flags: Mapping[str, Any] = {}
    """Flags that were given, and below the file that was named: what resolving again takes."""
    named_file: str | None = None


class _Layer(NamedTuple):
    value: Any
    origin: Origin


def resolve(
    flags: Mapping[str, Any],
    *,
    environ: Mapping[str, str] | None = None,
    file: str | None = None,
    process: Process | None = None,
    plugins: Collection[str] = (),
) -> Resolved:
    """Settings for one command.

    ``flags`` has setting names as keys; ``None``, ``()`` and missing mean not given. ``environ`` is ``os.environ`` by default;
    a variable that is set to nothing is not set. ``file`` is ``./dynamo.toml`` by default, if that exists. A scalar is taken
    from the strongest layer; lists and tables are joined, weakest layer first, so that a flag adds to what the file activates.
    Raises :class:`~dynamo_core.errors.ConfigError` in one sentence for whatever is unknown or ill-typed.

    With a ``process`` the plugins that it would use, and ``plugins`` besides, are imported, and their own settings are taken from
    all layers into :attr:`Resolved.plugin_tables`; their flags are keys ``plugins.NAME.KEY``.
    """
    fields = settings_fields()
    environ = os.environ if environ is None else environ
    source = read_file(file, fields)
    unknown = [name for name in flags if name not in fields and not name.startswith(PLUGIN_PREFIX)]
    if unknown:
        raise TypeError(f"resolve() got flags that are no settings: {', '.join(unknown)}")
    values: dict[str, Any] = {}
    origins: dict[str, Origin] = {}
    for name, field in fields.items():
        layers = list(_layers(field, flags, environ, source))
        if not layers:
            origins[name] = Origin("default", "default")
        elif field.is_list or field.is_table:
            values[name] = _join(field, layers, origins)
        else:
            values[name], origins[name] = layers[-1]
    given = {name: value for name, value in flags.items() if value is not None and value != ()}
    settings, tables = Settings(**values), source.plugin_tables
    if process is not None:
        types = plugin_types(settings, process, plugins)
        tables = _plugin_tables(types, flags, environ, source, origins)
    return Resolved(settings, origins, tables, source.path, given, file)


def _plugin_tables(
    types: Mapping[str, type[msgspec.Struct]],
    flags: Mapping[str, Any],
    environ: Mapping[str, str],
    source: ConfigFile,
    origins: dict[str, Origin],
) -> Mapping[str, Mapping[str, Any]]:
    """The tables with what the environment and flags say laid over them."""
    tables = dict(source.plugin_tables)
    for plugin, key, field in plugin_fields(types):
        path = f"{PLUGIN_PREFIX}{plugin}.{key}"
        table = tables.get(plugin, {})
        origins[path] = Origin("default", "default")
        if key in table:
            origins[path] = Origin("file", source.place(path))
        layers = list(_stated(field, flags.get(path), environ))
        if not layers:
            continue
        value: Any = layers[-1].value
        origins[path] = layers[-1].origin
        if field.is_list or field.is_table:
            if key in table:
                place = source.place(path)
                layers.insert(0, _Layer(convert(field, table[key], place, from_text=False), Origin("file", place)))
            joined: dict[str, Origin] = {}
            value = _join(field, layers, joined)
            origins[path] = joined[field.name]
        tables[plugin] = {**table, key: msgspec.to_builtins(value)}
    return tables


def _layers(field: Field, flags: Mapping[str, Any], environ: Mapping[str, str], source: ConfigFile) -> Iterator[_Layer]:
    """What each layer says of one setting, weakest first, converted and checked: a bad value is an error even where unused."""
    if field.name in source.values:
        place = source.place(field.name)
        yield _Layer(convert(field, source.values[field.name], place, from_text=False), Origin("file", place))
    yield from _stated(field, flags.get(field.name), environ)


def _stated(field: Field, given: Any, environ: Mapping[str, str]) -> Iterator[_Layer]:
    """What the environment and the flag say."""
    for name in field.env:
        if text := environ.get(name, "").strip():
            value = convert(field, parse_text(field, text), f"environment variable {name}", from_text=True)
            yield _Layer(value, Origin("environment", name))
            break
    if given is not None and given != ():
        flag = field.flag or f"flag {field.name}"
        if field.is_bool and isinstance(given, str):
            given = parse_text(field, given)
        yield _Layer(convert(field, given, flag, from_text=True), Origin("flag", flag))


def _join(field: Field, layers: list[_Layer], origins: dict[str, Origin]) -> Any:
    joined: dict[str, Any] = {}
    for value, origin in layers:
        items = value if field.is_table else dict.fromkeys(value)
        for key, item in items.items():
            if field.is_table or key not in joined:
                joined[key] = item
                origins[f"{field.name}.{key}"] = origin
    origins[field.name] = Origin(layers[-1].origin.kind, " + ".join(layer.origin.name for layer in reversed(layers)))
    return joined if field.is_table else tuple(joined)
