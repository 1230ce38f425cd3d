"""The hook functions of one plugin: found by pluggy's marks, checked against the specifications, ready to be called."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

import pluggy

from dynamo_core import hookspecs
from dynamo_core.errors import PluginError, StartupError
from dynamo_core.plugins.installed import PluginInfo
from dynamo_core.plugins.names import suggestion

__all__ = ["ActivePlugin", "Implementation", "bind", "blame", "find_hooks", "is_async"]

_SPECIFIED: tuple[str, ...] = (*hookspecs.REGISTRATION_HOOKS, *hookspecs.REQUEST_HOOKS, *hookspecs.LIFECYCLE_HOOKS)
_SYNC_ONLY: frozenset[str] = frozenset({*hookspecs.REGISTRATION_HOOKS, "dynamo_request_finished"})


class Implementation(NamedTuple):
    """One function of a plugin for one hook."""

    hook: str
    function: Callable[..., Any]
    arguments: tuple[str, ...]
    """As they stand in a call: ``request`` or, where the function has a default, ``config=config``."""
    tier: int
    """0 with ``tryfirst``, 1, 2 with ``trylast``."""
    is_async: bool


class ActivePlugin(NamedTuple):
    """A plugin that was imported: its functions by hook and its configuration."""

    info: PluginInfo
    hooks: Mapping[str, Implementation]
    config: Any = None


def find_hooks(info: PluginInfo, plugin: object, manager: pluggy.PluginManager) -> dict[str, Implementation]:
    """Register ``plugin`` and return its functions by hook.

    Raises :class:`~dynamo_core.errors.PluginError` for a hook or an argument that does not exist, a wrapper, an ``async``
    function where only a plain one can be called, a forgotten ``@hookimpl``, and a plugin without any hook.
    """
    if inspect.isclass(plugin):
        raise PluginError(f"plugin {info.label}: {info.target} is a class: point its entry point at an instance of it.")
    found: dict[str, Implementation] = {}
    try:
        for name in dir(plugin):
            options = manager.parse_hookimpl_opts(plugin, name)
            if options is None:
                _refuse_unmarked(info, plugin, name)
                continue
            hook = options["specname"] or name
            if hook not in _SPECIFIED and options["optionalhook"]:
                continue
            if hook in found:
                raise PluginError(f"plugin {info.label} implements {hook} twice: merge the two functions.")
            found[hook] = _implementation(info, hook, getattr(plugin, name), options)
        manager.register(plugin, name=info.name)
    except StartupError:
        raise
    except Exception as error:  # noqa: BLE001  # whatever a stranger's module raises is named and ends the start-up
        blame(info, "cannot be registered", error)
    if not found:
        raise PluginError(f"plugin {info.label}: {info.target} has no hook: mark its functions with @dynamo_core.hookimpl.")
    return found


def _implementation(info: PluginInfo, hook: str, function: Callable[..., Any], options: pluggy.HookimplOpts) -> Implementation:
    if hook not in _SPECIFIED:
        hint = suggestion(hook, _SPECIFIED, what="hooks")
        raise PluginError(f"plugin {info.label} implements a hook that this core does not have, {hook}: {hint}")
    if options["wrapper"] or options["hookwrapper"]:
        raise PluginError(
            f"plugin {info.label}: {hook} is a wrapper, which cannot be compiled: write it as a plain function of {hook}."
        )
    asynchronous = is_async(function)
    if hook in _SYNC_ONLY and asynchronous:
        raise PluginError(f"plugin {info.label}: {hook} is an async function: this hook is called without await, so use def.")
    if hook not in hookspecs.REGISTRATION_HOOKS and (
        inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function)
    ):
        raise PluginError(f"plugin {info.label}: {hook} yields: use return.")
    tier = 0 if options["tryfirst"] else 2 if options["trylast"] else 1
    return Implementation(hook, function, _arguments(info, hook, function), tier, asynchronous)


def _arguments(info: PluginInfo, hook: str, function: Callable[..., Any]) -> tuple[str, ...]:
    offered = tuple(inspect.signature(getattr(hookspecs, hook)).parameters)
    arguments = []
    for parameter in inspect.signature(function).parameters.values():
        name, required = parameter.name, parameter.default is parameter.empty
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        if name in offered:
            positional = required and parameter.kind is not parameter.KEYWORD_ONLY
            arguments.append(name if positional else f"{name}={name}")
        elif required:
            hint = suggestion(name, offered, what="it gives") if offered else "it gives none."
            raise PluginError(f"plugin {info.label}: {hook} has an argument that the hook does not give, {name}: {hint}")
    return tuple(arguments)


def _refuse_unmarked(info: PluginInfo, plugin: object, name: str) -> None:
    if name in _SPECIFIED and inspect.isroutine(getattr(plugin, name)):
        raise PluginError(f"plugin {info.label}: {name} is not marked: put @dynamo_core.hookimpl above it.")


def bind(implementation: Implementation, offered: Sequence[str], config: Any) -> Callable[..., Any]:
    """A callable of ``offered``, positionally: the function itself where that fits, else a closure that also binds ``config``."""
    function, arguments = implementation.function, implementation.arguments
    if arguments == tuple(offered):
        return function
    # A lambda per signature costs one call (0.04 µs); picking arguments at run time costs four times that. The names are
    # those of a hookspec: `_arguments` lets no other through.
    source = f"lambda function, config: lambda {', '.join(offered)}: function({', '.join(arguments)})"
    bound: Callable[..., Any] = eval(source)(function, config)  # noqa: S307
    return bound


def is_async(function: object) -> bool:
    """Whether calling it makes a coroutine; also true of an object whose ``__call__`` is async."""
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004


def blame(info: PluginInfo, failing: str, error: BaseException) -> NoReturn:
    """Raise what ends the start-up because of ``error``: whose fault it is, where it was raised and what to do.

    A :class:`~dynamo_core.errors.StartupError` of the plugin's own already says what to do; it only gets the plugin's name.
    """
    if isinstance(error, StartupError):
        raise type(error)(f"plugin {info.label}: {error.message}") from error
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
    text = str(error).strip().splitlines()
    what = type(error).__name__ + (f": {text[0]}" if text else "")
    if isinstance(error, ModuleNotFoundError) and error.name:
        todo = f"install what brings module {error.name!r}"
    else:
        todo = "the plugin is at fault: update it or tell its author"
    raise PluginError(
        f"plugin {info.label} {failing}: {what}{where}; {todo}, or leave it out with --no-plugin {info.name}."
    ) from error
