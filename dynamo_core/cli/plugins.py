"""``dynamo plugins``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click
import msgspec

from dynamo_core.cli.options import config_option, json_option, setting_options
from dynamo_core.cli.plugin_check import check
from dynamo_core.cli.plugin_show import show
from dynamo_core.cli.table import table

if TYPE_CHECKING:
    from dynamo_core.config import Resolved
    from dynamo_core.plugins import PluginInfo

__all__ = ["command"]

_SELECTING = ("plugins", "no_plugins", "engine", "router", "discovery_backend", "request_plane", "event_plane")


@click.group("plugins")
def command() -> None:
    """Show and check installed plugins."""


command.add_command(show)
command.add_command(check)


@command.command("list")
@setting_options("plugins", only=_SELECTING)
@config_option
@json_option
def list_(config: str | None, as_json: bool, **flags: Any) -> None:
    """Every installed plugin.

    Active are those that `dynamo serve` would use with the same flags, environment and file; what a plugin provides is known of
    active ones only, because no other is imported.
    """
    from dynamo_core.config import resolve

    infos = plugin_states(resolve(flags, file=config))
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(infos)))
        return
    rows = [(info.name, info.version, info.distribution, info.state, ", ".join(info.provides)) for info in infos]
    click.echo(table(("NAME", "VERSION", "DISTRIBUTION", "STATE", "PROVIDES"), rows))
    for line in dict.fromkeys(f"{info.name}: {info.error}" for info in infos if info.error):
        click.echo(line)


def plugin_states(resolved: Resolved) -> Sequence[PluginInfo]:
    """All installed plugins with what activating the selected ones found; one that cannot be activated says why."""
    from dynamo_core.config import active_plugin_names
    from dynamo_core.errors import StartupError
    from dynamo_core.plugins import activate, claimed_plugins

    settings = resolved.settings
    claimed = claimed_plugins(blocked=settings.no_plugins)
    found = {info.name: info for info in claimed}
    names = active_plugin_names(settings, process="serve", installed=found)

    def try_activating(selected: Sequence[str]) -> None:
        compiled = activate(
            selected,
            blocked=settings.no_plugins,
            tables=resolved.plugin_tables,
            source=resolved.file or "dynamo.toml",
            process="serve",
            installed=found,
        )
        found.update({info.name: info for info in compiled.plugins})

    unknown = [name for name in names if name not in found]
    try:
        try_activating(names)
    except StartupError:
        if unknown:
            raise
        for name in names:
            try:
                try_activating([name])
            except StartupError as error:
                if found[name].state != "error":
                    found[name] = msgspec.structs.replace(found[name], state="error", error=error.message)
    return tuple(info if info.state == "error" else found[info.name] for info in claimed)
