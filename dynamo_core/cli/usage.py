"""Wrong usage in one sentence, with the nearest right word."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

import click

__all__ = ["nearest", "usage_sentence"]


def nearest(word: str, known: Iterable[str]) -> str | None:
    matches = difflib.get_close_matches(word, sorted(known), n=1, cutoff=0.5)
    return matches[0] if matches else None


def usage_sentence(error: click.UsageError) -> str:
    """What click says over several lines, in one."""
    path = error.ctx.command_path if error.ctx is not None else "dynamo"
    if isinstance(error, click.NoSuchOption):
        name = error.option_name
        owner = _owner(error)
        if owner is not None:
            return f"`{path}` has the option {name} with plugin {owner} only: add --plugin {owner}."
        match = nearest(name, _options(error.ctx))
        hint = f"did you mean {match}?" if match else f"`{path} --help` lists them all."
        return f"`{path}` has no option {name}: {hint}"
    text = error.format_message().rstrip(".").replace("\n", " ")
    text = text[:1].lower() + text[1:]
    head, _, match = text.partition(" Did you mean ")
    if match:
        return f"`{path}`: {head.rstrip('.')}: did you mean {match}"
    return f"`{path}`: {text}; `{path} --help` explains."


def _owner(error: click.NoSuchOption) -> str | None:
    """The installed plugin that would bring the option along."""
    from dynamo_core.cli.plugin_options import PluginCommand, owner_of

    takes_them = error.ctx is not None and isinstance(error.ctx.command, PluginCommand)
    return owner_of(error.option_name) if takes_them else None


def _options(ctx: click.Context | None) -> list[str]:
    if ctx is None:
        return []
    return [option for parameter in ctx.command.get_params(ctx) for option in (*parameter.opts, *parameter.secondary_opts)]
