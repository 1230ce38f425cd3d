"""``dynamo config``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click
import msgspec

from dynamo_core.cli.options import config_option, json_option, setting_options
from dynamo_core.cli.plugin_options import ServeSettingsCommand
from dynamo_core.cli.table import table

if TYPE_CHECKING:
    from dynamo_core.config import Origin, Resolved

__all__ = ["command"]


@click.group("config")
def command() -> None:
    """Show settings and where each value came from."""


@command.command("show", cls=ServeSettingsCommand)
@setting_options("serve")
@config_option
@json_option
def show(config: str | None, as_json: bool, **flags: Any) -> None:
    """Every setting, its value and its origin: a flag, an environment variable, a line of the file or the default.

    Takes the flags of `dynamo serve`, and shows what it would run with.
    """
    from dynamo_core.config import resolve

    resolved = resolve(flags, file=config, process="serve")
    values: dict[str, Any] = msgspec.structs.asdict(resolved.settings)
    origins = dict(resolved.origins)
    _add_plugins(resolved, values, origins)
    if as_json:
        shown = {name: {"value": value, "origin": origins[name]} for name, value in values.items()}
        click.echo(msgspec.json.format(msgspec.json.encode(shown)))
        return
    rows = [(name, msgspec.json.encode(value).decode(), origins[name].name) for name, value in values.items()]
    click.echo(table(("SETTING", "VALUE", "ORIGIN"), rows))


def _add_plugins(resolved: Resolved, values: dict[str, Any], origins: dict[str, Origin]) -> None:
    """Every key of active plugins, and the tables of those that are not active as they stand in the file."""
    from dynamo_core.config import Origin, plugin_fields, plugin_types
    from dynamo_core.plugins import check_tables, installed_plugins

    check_tables(resolved.plugin_tables, installed_plugins(), resolved.file or "")
    types = plugin_types(resolved.settings, "serve")
    for plugin, key, field in plugin_fields(types):
        values[f"plugins.{plugin}.{key}"] = resolved.plugin_tables.get(plugin, {}).get(key, field.default)
    for name, options in resolved.plugin_tables.items():
        if name not in types:
            values[f"plugins.{name}"] = options
            origins[f"plugins.{name}"] = Origin("file", f"{resolved.file} [plugins.{name}]")


@command.command("schema")
@setting_options(
    "plugins", only=("plugins", "no_plugins", "engine", "router", "discovery_backend", "request_plane", "event_plane")
)
@config_option
def schema(config: str | None, **flags: Any) -> None:
    """JSON Schema of dynamo.toml, with the tables of the plugins that `dynamo serve` would use."""
    from dynamo_core.config import active_plugin_names, resolve
    from dynamo_core.config.schema import configuration_schema
    from dynamo_core.plugins import configuration_types

    resolved = resolve(flags, file=config)
    types = configuration_types(active_plugin_names(resolved.settings, process="serve"))
    click.echo(msgspec.json.format(msgspec.json.encode(configuration_schema(types), enc_hook=str)))
