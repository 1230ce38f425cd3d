"""``dynamo plugins show``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import click
import msgspec

from dynamo_core.cli.options import config_option, json_option
from dynamo_core.cli.table import table

if TYPE_CHECKING:
    from dynamo_core.plugins import PluginDescription

__all__ = ["show"]


@click.command("show")
@click.argument("name")
@config_option
@json_option
def show(name: str, config: str | None, as_json: bool) -> None:
    """Hooks, records and configuration of one plugin, which is imported for it."""
    from dynamo_core.config import active_plugin_names, resolve
    from dynamo_core.errors import PluginError
    from dynamo_core.plugins import canonical_name, describe_plugin, installed_plugins, suggestion

    resolved = resolve({}, file=config)
    installed = installed_plugins(blocked=resolved.settings.no_plugins)
    known = name if name in installed else canonical_name(name)
    if known not in installed:
        raise PluginError(f"plugin {name!r} is not installed: {suggestion(known, installed, what='installed plugins')}")
    info = installed[known]
    if known in active_plugin_names(resolved.settings, process="serve", installed=installed):
        info = msgspec.structs.replace(info, state="active")
    described = describe_plugin(info, table=resolved.plugin_tables.get(known), source=resolved.file or "dynamo.toml")
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(described)))
    else:
        click.echo("\n\n".join(_sections(described)).replace("``", "`"))


def _sections(plugin: PluginDescription) -> Iterator[str]:
    origin = f"{plugin.distribution} {plugin.version}".strip() or "no distribution"
    head = f"{plugin.name}: {origin}, {plugin.target}, {plugin.state}"
    yield f"{head}\n{plugin.summary}" if plugin.summary else head
    rows = [(f"{'async ' * hook.is_async}{hook.name}({', '.join(hook.arguments)})", hook.kind, hook.doc) for hook in plugin.hooks]
    yield table(("HOOK", "KIND", "MEANING"), rows)
    if plugin.records:
        records = [
            (record.kind, record.name, record.api, record.stability, _about(record.description, record.requires))
            for record in plugin.records
        ]
        yield table(("PROVIDES", "NAME", "CONTRACT", "STABILITY", "DESCRIPTION"), records)
    if plugin.configuration:
        keys = [
            (key.name, key.type, "required" if key.required else _default(key.default), key.doc) for key in plugin.configuration
        ]
        yield table((f"KEY IN [plugins.{plugin.name}]", "TYPE", "DEFAULT", "MEANING"), keys)
    else:
        yield "It has no configuration."


def _about(description: str, requires: Mapping[str, str]) -> str:
    needs = f"needs {', '.join(requires)}" if requires else ""
    return "; ".join(filter(None, (description, needs)))


def _default(value: object) -> str:
    return msgspec.json.encode(value, enc_hook=str).decode()
