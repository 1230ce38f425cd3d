"""Flags that active plugins bring along, on the commands that run them.

Which plugins these are is known from the words of the command line itself, the environment and the file, before anything is
parsed. The core's own defaults bring no flags, so that a plain ``--help`` imports nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import click

from dynamo_core.cli.options import field_option
from dynamo_core.errors import StartupError

__all__ = ["PluginCommand", "ServeSettingsCommand", "owner_of"]

_OPTIONS = f"{__name__}.options"
_NAMING = {
    "--plugin": "plugins", "--no-plugin": "no_plugins", "--router": "router", "--engine": "engine",
    "--discovery-backend": "discovery_backend", "--request-plane": "request_plane", "--event-plane": "event_plane",
}  # fmt: skip
_FILE = "--config"


class PluginCommand(click.Command):
    """A command that gets the flags of plugins as keys ``plugins.NAME.KEY``, which :func:`~dynamo_core.config.resolve` takes."""

    flags_of: str | None = None
    """The command whose flags these are, where it is another one."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        return [*super().get_params(ctx), *ctx.meta.get(_OPTIONS, {})]

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        options = dict(_plugin_options(self.flags_of or self.name or "", args))
        ctx.meta[_OPTIONS] = options
        rest = super().parse_args(ctx, args)
        for option, path in options.items():
            ctx.params[path] = ctx.params.pop(str(option.name), None)
        return rest


class ServeSettingsCommand(PluginCommand):
    """Takes what `dynamo serve` takes."""

    flags_of = "serve"


def _plugin_options(command: str, args: Sequence[str]) -> Iterator[tuple[click.Option, str]]:
    """Each with the key under which its value travels. None where the configuration is wrong: the command will say so."""
    from dynamo_core.config import plugin_fields, resolve
    from dynamo_core.plugins import configuration_types

    words = dict(_words(args))
    file = words.pop(_FILE, [None])[-1]
    flags = {_NAMING[flag]: tuple(values) if "plugin" in flag else values[-1] for flag, values in words.items()}
    with contextlib.suppress(StartupError):
        settings = resolve(flags, file=file).settings
        spoken = [value for flag, values in words.items() if flag != "--no-plugin" for value in values]
        planes = (settings.discovery_backend, settings.request_plane, settings.event_plane)
        named = [name for name in (*settings.plugins, settings.router, settings.engine, *planes, *spoken) if name is not None]
        types = configuration_types(_installed(named, settings.no_plugins))
        for number, (plugin, key, field) in enumerate(plugin_fields(types)):
            if field.flag is not None and (not field.commands or command in field.commands):
                yield field_option(field, f"plugin_flag_{number}"), f"plugins.{plugin}.{key}"


def owner_of(flag: str) -> str | None:
    """The installed plugin whose configuration has this flag; imports all of them."""
    from dynamo_core.config import plugin_fields
    from dynamo_core.plugins import configuration_types, installed_plugins

    for name in installed_plugins():
        with contextlib.suppress(StartupError):
            if any(field.flag == flag for _, _, field in plugin_fields(configuration_types([name]))):
                return name
    return None


def _installed(names: Sequence[str], blocked: Sequence[str]) -> list[str]:
    from dynamo_core.plugins import canonical_name, installed_plugins

    installed = installed_plugins(blocked=blocked)
    canonical = dict.fromkeys(name if name in installed else canonical_name(name) for name in names)
    return [name for name in canonical if name in installed and name not in blocked and not installed[name].error]


def _words(args: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """The values of those options that say which plugins there are."""
    found: dict[str, list[str]] = {}
    for position, word in enumerate(args):
        if word == "--":
            break
        flag, equals, value = word.partition("=")
        if flag in _NAMING or flag == _FILE:
            following = args[position + 1] if position + 1 < len(args) else None
            given = value if equals else following
            if given is not None:
                found.setdefault(flag, []).append(given)
    yield from found.items()
