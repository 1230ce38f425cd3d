"""The top-level command: built-in commands by name, and those of active plugins, each imported when it is called for."""

from __future__ import annotations

import contextlib
import importlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dynamo_core.cli.usage import nearest
from dynamo_core.errors import StartupError

if TYPE_CHECKING:
    from dynamo_core.plugins import Compiled

__all__ = ["LazyGroup", "root"]

_COMMANDS = {
    "serve": "Start workers and frontends, watch them, and serve one model.",
    "frontend": "Run one frontend in the foreground.",
    "worker": "Run one worker in the foreground.",
    "run": "Run an engine at once: HTTP, chat, one answer, a batch, or a worker.",
    "chat": "Talk to a model, here or on a running server.",
    "status": "Show processes, models and workers of a running serve.",
    "sleep": "Let workers of a running serve rest.",
    "wake": "Let workers that rest serve again.",
    "router": "Run a router as a process of its own, or explain a choice.",
    "simulate": "Replay a trace through routers and simulated workers, in virtual time.",
    "reload": "Have a running serve read its configuration again.",
    "plugins": "Show and check plugins.",
    "config": "Show settings and where each value came from.",
}


class LazyGroup(click.Group):
    """``--help`` imports no command; a word that is no built-in command is looked for among the commands of active plugins."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*_COMMANDS, *_plugin_summaries(ctx)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in _COMMANDS:
            command: click.Command = importlib.import_module(f"dynamo_core.cli.{cmd_name}").command
            return command
        return _plugin_command(ctx, cmd_name)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        command = self.get_command(ctx, name)
        if command is None:
            if name.startswith("-"):
                raise click.NoSuchOption(name, ctx=ctx)
            match = nearest(name, self.list_commands(ctx))
            hint = f"did you mean {match}?" if match else "`dynamo --help` lists them all."
            raise StartupError(f"`dynamo` has no command {name!r}: {hint}")
        return name, command, args[1:]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([*_COMMANDS.items(), *_plugin_summaries(ctx).items()])


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="`dynamo COMMAND --help` explains a command. Settings also come from DYN_* variables and dynamo.toml.",
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=lambda ctx, _parameter, asked: _show_version(ctx) if asked else None,
    help="Show the versions of the core and of active plugins, and the engines found here.",
)
@click.option(
    "--plugin", "plugins", multiple=True, is_eager=True, metavar="NAME", help="Plugin whose commands to add; repeatable."
)
def root(plugins: tuple[str, ...]) -> None:
    """Serve large language models, with everything a plugin."""
    del plugins  # read from the context where commands are looked up


def _show_version(ctx: click.Context) -> None:
    from dynamo_core.cli.version import version_text

    click.echo(version_text(ctx.params.get("plugins") or ()))
    ctx.exit()


def _plugin_summaries(ctx: click.Context) -> dict[str, str]:
    """Names and descriptions for ``--help``, which works whatever is wrong with the configuration."""
    if not (ctx.params.get("plugins") or os.environ.get("DYN_PLUGINS") or Path("dynamo.toml").exists()):
        return {}
    with contextlib.suppress(StartupError):
        compiled = _activate(ctx, None)
        return {name: provider.spec.description for name, provider in compiled.commands.items() if name not in _COMMANDS}
    return {}


def _plugin_command(ctx: click.Context, name: str) -> click.Command | None:
    compiled = _activate(ctx, name)
    provider = compiled.commands.get(name)
    if provider is None:
        return None
    command: Any = provider.spec.factory()
    if not isinstance(command, click.Command):
        raise StartupError(f"Plugin {provider.plugin!r}: its command {name!r} is no click command; tell its author.")
    return command


def _activate(ctx: click.Context, name: str | None) -> Compiled:
    """Plugins that the flags, the environment or the file name, and the one that has the command's own name."""
    from dynamo_core.config import resolve
    from dynamo_core.plugins import activate, installed_plugins

    resolved = resolve({"plugins": ctx.params.get("plugins") or ()})
    names = [*resolved.settings.plugins]
    if name is not None and name in installed_plugins():
        names.append(name)
    return activate(
        names,
        blocked=resolved.settings.no_plugins,
        tables=resolved.plugin_tables,
        source=resolved.file or "dynamo.toml",
        process="serve",
    )
