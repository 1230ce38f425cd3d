"""Command-line options made from the settings: one flag a setting, its help with environment names and default."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection
from typing import Any, TypeVar

import click
import msgspec

from dynamo_core.config import Field, settings_fields

__all__ = ["config_option", "field_option", "json_option", "setting_options"]

_Function = TypeVar("_Function", bound=Callable[..., Any])

config_option = click.option("--config", metavar="FILE", help="Configuration file; ./dynamo.toml if that exists.", default=None)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def setting_options(command: str, *, only: Collection[str] | None = None) -> Callable[[_Function], _Function]:
    """Options of every setting that ``command`` has, or of ``only`` these settings.

    ``-v`` and ``-vv`` come with them: ``--log debug`` and ``--log trace``, also for the command's own process. A flag that is
    not given is ``None`` or ``()``. Types and ranges are :func:`~dynamo_core.config.resolve`'s business, so that all sources are
    judged alike.
    """

    def decorate(function: _Function) -> _Function:
        function = _with_verbose(function)
        for field in reversed(tuple(settings_fields().values())):
            wanted = field.name in only if only is not None else not field.commands or command in field.commands
            if wanted and field.flag is not None:
                function = _option(field)(function)
        return function

    return decorate


def _with_verbose(function: _Function) -> _Function:
    @functools.wraps(function)
    def command(*args: Any, verbose: int, **flags: Any) -> Any:
        if verbose:
            from dynamo_core.runtime.logging import configure_dynamo_logging

            level = flags.get("log") or ("debug" if verbose == 1 else "trace")
            flags["log"] = level
            configure_dynamo_logging(level)
        return function(*args, **flags)

    return click.option("-v", "verbose", count=True, help="Log more: -v debug, -vv trace.")(command)  # type: ignore[return-value]


def _option(field: Field) -> Callable[[_Function], _Function]:
    declarations, attributes = _declaration(field, field.name)
    return click.option(*declarations, **attributes)


def field_option(field: Field, name: str) -> click.Option:
    """The option of a setting under another parameter name."""
    declarations, attributes = _declaration(field, name)
    return click.Option(declarations, **attributes)


def _declaration(field: Field, name: str) -> tuple[list[str], dict[str, Any]]:
    if field.is_bool:
        return [f"{field.flag}/--no-{(field.flag or '')[2:]}", name], {"default": None, "help": _help(field)}
    several = field.is_list or field.is_table
    return [str(field.flag), name], {"multiple": several, "default": None, "metavar": _metavar(field), "help": _help(field)}


def _help(field: Field) -> str:
    notes = [f"env: {', '.join(field.env)}"] if field.env else []
    if field.default is not None and field.default not in ((), {}):
        notes.append(f"default: {msgspec.json.encode(field.default).decode().strip(chr(34))}")
    return f"{field.doc}  [{'; '.join(notes)}]" if notes else field.doc


def _metavar(field: Field) -> str:
    kinds = {
        msgspec.inspect.IntType: "N",
        msgspec.inspect.FloatType: "NUMBER",
        msgspec.inspect.VarTupleType: "NAME",
        msgspec.inspect.DictType: "KEY=VALUE",
    }
    info = field.info
    members = info.types if isinstance(info, msgspec.inspect.UnionType) else (info,)
    plain = [member.type if isinstance(member, msgspec.inspect.Metadata) else member for member in members]
    return next((kinds[type(member)] for member in plain if type(member) in kinds), "TEXT")
