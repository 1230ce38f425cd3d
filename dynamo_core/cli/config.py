"""``dynamo config``."""

from __future__ import annotations

from typing import Any

import click
import msgspec

from dynamo_core.cli.options import config_option, json_option, setting_options
from dynamo_core.cli.table import table

__all__ = ["command"]


@click.group("config")
def command() -> None:
    """Show settings and where each value came from."""


@command.command("show")
@setting_options("serve")
@config_option
@json_option
def show(config: str | None, as_json: bool, **flags: Any) -> None:
    """Every setting, its value and its origin: a flag, an environment variable, a line of the file or the default.

    Takes the flags of `dynamo serve`, and shows what it would run with.
    """
    from dynamo_core.config import Origin, resolve

    resolved = resolve(flags, file=config)
    values: dict[str, Any] = msgspec.structs.asdict(resolved.settings)
    origins = dict(resolved.origins)
    for name, options in resolved.plugin_tables.items():
        key = f"plugins.{name}"
        values[key] = options
        origins.setdefault(key, Origin("file", f"{resolved.file} [{key}]"))
    if as_json:
        shown = {name: {"value": value, "origin": origins[name]} for name, value in values.items()}
        click.echo(msgspec.json.format(msgspec.json.encode(shown)))
        return
    rows = [(name, msgspec.json.encode(value).decode(), origins[name].name) for name, value in values.items()]
    click.echo(table(("SETTING", "VALUE", "ORIGIN"), rows))


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
