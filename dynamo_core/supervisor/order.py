"""What a child process is to be: written by the supervisor into the run folder, read by the child."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import msgspec

from dynamo_core.config import Resolved, Settings

__all__ = ["Order", "ProcessKind", "make_order"]

ProcessKind: TypeAlias = Literal["frontend", "worker"]


class Order(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    """``worker-0``; unique in the run."""
    kind: ProcessKind
    settings: Settings
    plugin_tables: dict[str, dict[str, Any]] = {}
    source: str = "dynamo.toml"
    """Name of the configuration file, for sentences about ``plugin_tables``."""
    cpu_cores: tuple[int, ...] = ()
    """Cores set aside for this process; empty: no preference."""
    endpoint: str = "generate"
    """Of a worker: the last part of its address."""
    flags: dict[str, Any] = {}
    """The command line's, and below the file that it named: a reload resolves them again."""
    config_file: str | None = None


def make_order(
    resolved: Resolved, *, kind: ProcessKind, name: str, settings: Settings | None = None, cpu_cores: tuple[int, ...] = ()
) -> Order:
    """The order for one process of a run; ``settings`` in place of the resolved ones, where the run adds to them."""
    return Order(
        name=name,
        kind=kind,
        settings=settings or resolved.settings,
        plugin_tables={key: dict(table) for key, table in resolved.plugin_tables.items()},
        source=resolved.file or "dynamo.toml",
        cpu_cores=cpu_cores,
        flags=dict(resolved.flags),
        config_file=resolved.named_file,
    )
