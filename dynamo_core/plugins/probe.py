"""One plugin imported in a process of its own, and what is wrong with it.

``python -m dynamo_core.plugins.probe ORDER RESULT`` reads an :class:`Order` from a JSON file and writes a :class:`Report`.
"""

from __future__ import annotations

import importlib
import inspect
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from time import monotonic, perf_counter
from typing import Any, Literal

import msgspec

from dynamo_core.contracts import RouterContext
from dynamo_core.errors import StartupError
from dynamo_core.plugins.configuration import config_keys
from dynamo_core.plugins.hooks import ActivePlugin
from dynamo_core.plugins.installed import PluginInfo
from dynamo_core.plugins.loading import config_type, load_plugin, plugin_object, specified
from dynamo_core.plugins.providers import KINDS, Kind, plugin_records
from dynamo_core.plugins.router_check import router_faults

__all__ = ["ENGINES", "Finding", "Order", "Report"]

ENGINES = frozenset({"grpc", "sglang", "tensorrt_llm", "torch", "transformers", "vllm"})
"""What no plugin may bring along when it is imported."""

_OURS = ("click", "litestar", "prometheus_client", "dynamo_core.contracts", "dynamo_core.specs")
"""Imported beforehand: the processes that import plugins have them anyway."""


class Finding(msgspec.Struct, frozen=True):
    check: Literal["metadata", "import", "hooks", "configuration", "records", "docs"]
    message: str


class Order(msgspec.Struct, frozen=True):
    info: PluginInfo
    paths: tuple[str, ...] = ()
    """To be put before ``sys.path``."""


class Report(msgspec.Struct, frozen=True):
    findings: tuple[Finding, ...]
    import_seconds: float | None = None


def probe(order: Order) -> Report:
    """Import and inspect. Changes this process: meant for one that ends afterwards."""
    info = order.info
    for module in _OURS:
        importlib.import_module(module)
    sys.path[:0] = order.paths
    threads, sockets, modules = threading.active_count(), _sockets(), ENGINES & sys.modules.keys()
    begin = perf_counter()
    try:
        plugin_object(info)
    except StartupError as error:
        return Report((Finding("import", error.message),))
    seconds = perf_counter() - begin
    findings = [Finding("import", f"importing it brings {name}: import that where it is used" + _TODO) for name in sorted(
        (ENGINES & sys.modules.keys()) - modules
    )]  # fmt: skip
    if threading.active_count() > threads:
        names = ", ".join(sorted(thread.name for thread in threading.enumerate() if thread is not threading.main_thread()))
        findings.append(
            Finding("import", f"importing it starts threads ({names}): start them in a factory or in dynamo_startup.")
        )
    if _sockets() > sockets:
        findings.append(Finding("import", "importing it opens sockets: open them in a factory or in dynamo_startup."))
    findings += _inspect(info)
    if not (sys.modules[info.target.partition(":")[0]].__doc__ or "").strip():
        findings.append(Finding("docs", "its module has no docstring: say in one line what the plugin does."))
    return Report(tuple(findings), seconds)


_TODO = ", such as in the factory."


def _sockets() -> int:
    folder = Path("/proc/self/fd")
    if not folder.is_dir():  # not Linux: nothing is known
        return 0
    links = []
    for entry in folder.iterdir():
        try:
            links.append(str(entry.readlink()))
        except OSError:  # the folder's own descriptor is gone again
            continue
    return sum(link.startswith("socket:") for link in links)


def _inspect(info: PluginInfo) -> Iterator[Finding]:
    try:
        hooks = load_plugin(info, specified())
    except StartupError as error:
        yield Finding("hooks", error.message)
        return
    config: Any = None
    needs_table = False
    try:
        type_ = config_type(info, hooks)
    except StartupError as error:
        yield Finding("configuration", error.message)
        type_ = None
    if type_ is not None:
        for key in config_keys(type_):
            if not key.doc:
                yield Finding("configuration", f"key {key.name} has no text below it that says what it means.")
        try:
            config = msgspec.convert({}, type_)
        except msgspec.ValidationError:
            needs_table = True
    plugin = ActivePlugin(info, hooks, config)
    for kind in KINDS:
        if kind.hook in hooks and not (needs_table and hooks[kind.hook].arguments):
            yield from _inspect_records(plugin, kind)


def _inspect_records(plugin: ActivePlugin, kind: Kind) -> Iterator[Finding]:
    try:
        records = plugin_records(plugin, kind)
    except StartupError as error:
        yield Finding("records", error.message)
        return
    for record in records:
        factory = getattr(record, "factory", None)
        if kind.name != "http" and not _takes(factory, len(kind.factory_takes)):
            wanted = ", ".join(kind.factory_takes)
            yield Finding("records", f"the factory of {kind.name} {record.name!r} must be callable as factory({wanted}).")
        elif kind.name == "router":
            yield from _inspect_router(record, plugin.config)


def _inspect_router(record: Any, config: Any) -> Iterator[Finding]:
    """Its class where the factory is one, else what the factory makes."""
    router = record.factory
    if not isinstance(router, type):
        try:
            router = router(config, RouterContext(model="probe", block_size=16, clock=monotonic))
        except Exception as error:  # noqa: BLE001  # a stranger's code
            what = f"{type(error).__name__}: {error}"
            yield Finding("records", f"router {record.name!r} cannot be made without a configuration ({what}).")
            return
    for fault in router_faults(router):
        yield Finding("records", f"router {record.name!r} {fault}.")


def _takes(factory: Any, count: int) -> bool:
    if not callable(factory):
        return False
    try:
        inspect.signature(factory).bind(*range(count))
    except TypeError:
        return False
    except ValueError:  # a builtin without a signature
        return True
    return True


def _main(order_path: str, result_path: str) -> None:
    order = msgspec.json.decode(Path(order_path).read_bytes(), type=Order)
    report = probe(order)
    Path(result_path).write_bytes(msgspec.json.encode(report))
    sys.stdout.flush()
    os._exit(0)  # whatever threads it started must not keep this process


if __name__ == "__main__":
    _main(*sys.argv[1:])
