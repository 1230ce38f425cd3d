"""Output filters, compiled: one callable that is asked once a stream, whatever the number of plugins that filter.

A filter is a policy: one that raises, or that returns anything but text, ends its request, so that nothing leaves unfiltered.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

from dynamo_core.contracts.output_filter import OutputFilter, OutputStream
from dynamo_core.errors import DynamoError
from dynamo_core.plugins.faults import Faults

__all__ = ["FilterSource", "OpenFilter", "filtering"]

OpenFilter: TypeAlias = Callable[[OutputStream], OutputFilter | None]

_HOOK = "dynamo_output_filters"


class FilterSource(NamedTuple):
    """What one plugin's record made at start-up."""

    plugin: str
    open: OpenFilter


def filtering(sources: Sequence[FilterSource], faults: Faults) -> OpenFilter | None:
    """``open(stream) -> filter | None`` over all plugins, the text passing from the first to the last; ``None`` without any.

    What it returns raises only :class:`~dynamo_core.errors.DynamoError`. Costs 0.1 µs a call beside the filter's own work.
    """
    if not sources:
        return None
    chain = tuple(sources)

    def open_filter(stream: OutputStream) -> OutputFilter | None:
        filters = [
            _Guarded(source.plugin, made, faults) for source in chain if (made := _open(source, stream, faults)) is not None
        ]
        if len(filters) > 1:
            return _Chain(tuple(filters))
        return filters[0] if filters else None

    return open_filter


def _open(source: FilterSource, stream: OutputStream, faults: Faults) -> Any:
    try:
        made = source.open(stream)
    except DynamoError:
        raise
    except Exception as error:
        raise faults.raised(source.plugin, _HOOK, error) from error
    if made is None or (callable(getattr(made, "push", None)) and callable(getattr(made, "finish", None))):
        return made
    raise faults.returned(source.plugin, _HOOK, made, "a filter with push and finish, or None")


class _Guarded:
    """One plugin's filter, whose faults are attributed to its plugin."""

    __slots__ = ("_faults", "_finish", "_plugin", "_push")

    def __init__(self, plugin: str, made: Any, faults: Faults) -> None:
        self._plugin = plugin
        self._push: Callable[[str], Any] = made.push
        self._finish: Callable[[], Any] = made.finish
        self._faults = faults

    def push(self, text: str) -> str:
        try:
            result = self._push(text)
        except DynamoError:
            raise
        except Exception as error:
            raise self._faults.raised(self._plugin, _HOOK, error) from error
        if isinstance(result, str):
            return result
        raise self._faults.returned(self._plugin, _HOOK, result, "text")

    def finish(self) -> str:
        try:
            result = self._finish()
        except DynamoError:
            raise
        except Exception as error:
            raise self._faults.raised(self._plugin, _HOOK, error) from error
        if isinstance(result, str):
            return result
        raise self._faults.returned(self._plugin, _HOOK, result, "text")


class _Chain:
    """Several filters in plugin order."""

    __slots__ = ("_filters",)

    def __init__(self, filters: tuple[_Guarded, ...]) -> None:
        self._filters = filters

    def push(self, text: str) -> str:
        for link in self._filters:
            if not text:
                break
            text = link.push(text)
        return text

    def finish(self) -> str:
        rest = ""
        for link in self._filters:
            rest = (link.push(rest) if rest else "") + link.finish()
        return rest
