"""What plugins did wrong while serving: counted by plugin and hook, and logged."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from types import MappingProxyType

from dynamo_core.errors import DynamoError

__all__ = ["Faults"]

_log = logging.getLogger(__name__)


class Faults:
    """The counter of one :class:`~dynamo_core.plugins.compiled.Compiled`; belongs to the event loop's thread."""

    __slots__ = ("_counts",)

    def __init__(self) -> None:
        self._counts: dict[tuple[str, str], int] = {}

    @property
    def counts(self) -> Mapping[tuple[str, str], int]:
        """(plugin, hook) → how often; a live view, for a metric's collector."""
        return MappingProxyType(self._counts)

    def count(self, plugin: str, hook: str, error: BaseException) -> None:
        """Count and log with the traceback; the caller goes on."""
        self._add(plugin, hook)
        _log.error("plugin %r raised in %s", plugin, hook, exc_info=error)

    def raised(self, plugin: str, hook: str, error: Exception) -> DynamoError:
        """Count an exception that is not one of ours; returns what the client is told, which has no internals."""
        self.count(plugin, hook, error)
        return _internal_error()

    def returned(self, plugin: str, hook: str, value: object, expected: str) -> DynamoError:
        """Count a result of the wrong type; returns what the client is told."""
        self._add(plugin, hook)
        _log.error("plugin %r returned %s from %s, which must return %s", plugin, type(value).__name__, hook, expected)
        close = getattr(value, "close", None)
        if close is not None and hasattr(value, "__await__"):
            close()  # a coroutine that nobody will await
        return _internal_error()

    def _add(self, plugin: str, hook: str) -> None:
        self._counts[plugin, hook] = self._counts.get((plugin, hook), 0) + 1


def _internal_error() -> DynamoError:
    return DynamoError("A plugin of the server failed on this request.", code="plugin_failed")
