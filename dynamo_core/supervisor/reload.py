"""A configuration that is read again while its processes run.

Reloaded are the choice of plugins, their tables and the log level. Everything else keeps its value until a restart.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec

from dynamo_core.config import Resolved, resolve
from dynamo_core.errors import StartupError
from dynamo_core.runtime.logging import configure_dynamo_logging, parse_log_spec
from dynamo_core.supervisor.order import Order
from dynamo_core.supervisor.preflight import activate_for

if TYPE_CHECKING:
    from dynamo_core.http.frontend import Frontend

__all__ = ["FrontendReload", "configure_logs_as", "order_settings", "renewed"]

_log = logging.getLogger(__name__)

_RELOADED = ("plugins", "no_plugins", "log")
_OF_THE_RUN = frozenset({"http_host", "http_port", "file_kv", "run_dir"})
"""Settings that the supervisor decides for its children."""


def order_settings(order: Order) -> Resolved:
    return Resolved(order.settings, {}, order.plugin_tables, order.source)


def renewed(order: Order) -> Order:
    """The order as flags, environment and file say now. Raises :class:`StartupError` for a file that cannot be right."""
    flags = {name: tuple(value) if isinstance(value, list) else value for name, value in order.flags.items()}
    resolved = resolve(flags, file=order.config_file, process=order.kind)
    parse_log_spec(resolved.settings.log)
    settings = msgspec.structs.replace(order.settings, **{name: getattr(resolved.settings, name) for name in _RELOADED})
    tables = {key: dict(table) for key, table in resolved.plugin_tables.items()}
    stale = [
        name
        for name in settings.__struct_fields__
        if name not in _OF_THE_RUN and getattr(settings, name) != getattr(resolved.settings, name)
    ]
    if stale:
        _log.warning("these settings have changed and take effect with a restart: %s", ", ".join(stale))
    return msgspec.structs.replace(order, settings=settings, plugin_tables=tables, source=resolved.file or order.source)


class FrontendReload:
    """The reloading of one frontend, whoever asks for it; one at a time."""

    def __init__(self, order: Order, frontend: Frontend, configure_logs: Callable[[Order], None]) -> None:
        self._order = order
        self._frontend = frontend
        self._configure_logs = configure_logs
        self._lock = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()

    async def __call__(self) -> dict[str, Any]:
        """Raises :class:`StartupError`; the plugins that were active stay so."""
        async with self._lock:
            order = renewed(self._order)
            compiled = activate_for(order_settings(order), "frontend")
            await self._frontend.reload(compiled)
            self._configure_logs(order)
            self._order = order
            names = [info.name for info in compiled.plugins]
            _log.info("reloaded: plugins %s", ", ".join(names))
            return {"plugins": names}

    def on_signal(self) -> None:
        """For a signal handler: there is nobody to answer but the log."""
        task = asyncio.create_task(self._tell(), name="reload")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _tell(self) -> None:
        try:
            await self()
        except StartupError as error:
            _log.error("not reloaded, the earlier configuration stays: %s", error.message)


def configure_logs_as(order: Order, *, supervised: bool) -> None:
    """Logging of a process as its order says. Text of a supervised process is named by the supervisor."""
    settings = order.settings
    named = settings.log_jsonl or not supervised
    configure_dynamo_logging(settings.log, jsonl=settings.log_jsonl, process=order.name if named else "")
