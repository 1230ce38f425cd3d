"""``dynamo plugins check``: what is wrong with a plugin that is installed, or lies in a folder or a module."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from dynamo_core.errors import PluginError
from dynamo_core.hookspecs import ENTRY_POINT_GROUP
from dynamo_core.plugins.installed import PluginInfo, installed_plugins
from dynamo_core.plugins.names import canonical_name, is_plugin_name, suggestion
from dynamo_core.plugins.probe import Finding, Order, Report

__all__ = ["IMPORT_SECONDS", "Checked", "check_plugin"]

IMPORT_SECONDS = 0.5
"""An import that takes longer is a finding; the best of three counts."""

_TIMEOUT = 60.0


class Checked(msgspec.Struct, frozen=True, kw_only=True):
    """One plugin that was looked at."""

    name: str
    findings: tuple[Finding, ...]
    import_seconds: float | None = None
    """``None``: it could not be imported."""


def check_plugin(target: str) -> tuple[Checked, ...]:
    """``target`` is an installed plugin's name, a folder with a ``pyproject.toml`` or a module's file. Imports it elsewhere.

    Raises :class:`~dynamo_core.errors.PluginError` if there is nothing to look at.
    """
    path = Path(target)
    looks_like_a_path = os.sep in target or target.endswith(".py") or target in (".", "..")
    if looks_like_a_path or (path.exists() and canonical_name(target) not in installed_plugins()):
        if path.is_dir():
            return tuple(_check_folder(path))
        if path.suffix == ".py" and path.is_file():
            info = PluginInfo(name=canonical_name(path.stem), target=path.stem)
            return (_check(info, (), (str(path.resolve().parent),)),)
        raise PluginError(f"{target} is neither a folder nor a Python module: name one of these, or an installed plugin.")
    installed = installed_plugins()
    name = target if target in installed else canonical_name(target)
    if name not in installed:
        raise PluginError(f"plugin {target!r} is not installed: {suggestion(name, installed, what='installed plugins')}")
    info = installed[name]
    return (_check(info, [Finding("metadata", info.error)] if info.error else [], ()),)


def _check_folder(folder: Path) -> Iterator[Checked]:
    file = folder / "pyproject.toml"
    if not file.is_file():
        raise PluginError(f"{folder} has no pyproject.toml: name a plugin's folder, a module's file or an installed plugin.")
    try:
        project = tomllib.loads(file.read_text(encoding="utf-8")).get("project", {})
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise PluginError(f"{file} is not valid TOML: {error}.") from error
    points: Mapping[str, str] = project.get("entry-points", {}).get(ENTRY_POINT_GROUP, {})
    findings = list(_metadata(project, folder))
    if not points:
        wanted = f'[project.entry-points."{ENTRY_POINT_GROUP}"]'
        yield Checked(name=folder.name, findings=(*findings, Finding("metadata", f"pyproject.toml has no {wanted} table.")))
        return
    paths = tuple(str(place.resolve()) for place in (folder / "src", folder) if place.is_dir())
    for name, target in points.items():
        info = PluginInfo(
            name=name, target=target, distribution=str(project.get("name", "")), version=str(project.get("version", ""))
        )
        more = [] if is_plugin_name(name) else [Finding("metadata", f"{name!r} must be lower case letters, digits and hyphens.")]
        yield _check(info, [*findings, *more], paths)


def _metadata(project: Mapping[str, Any], folder: Path) -> Iterator[Finding]:
    for key in ("name", "description", "requires-python"):
        if not project.get(key):
            yield Finding("metadata", f"pyproject.toml lacks project.{key}.")
    if not project.get("version") and "version" not in project.get("dynamic", ()):
        yield Finding("metadata", "pyproject.toml lacks project.version.")
    if not any(str(item).replace("_", "-").startswith("dynamo-core") for item in project.get("dependencies", ())):
        yield Finding("metadata", "pyproject.toml does not name dynamo-core among project.dependencies.")
    if not any(folder.glob("README*")):
        yield Finding("docs", "the folder has no README: say what the plugin does, its configuration and an example.")


def _check(info: PluginInfo, findings: Sequence[Finding], paths: tuple[str, ...]) -> Checked:
    report = _probe(Order(info, paths))
    for _ in range(2):
        if report.import_seconds is None or report.import_seconds <= IMPORT_SECONDS:
            break
        again = _probe(Order(info, paths))
        if again.import_seconds is not None and again.import_seconds < report.import_seconds:
            report = again
    seconds = report.import_seconds
    slow = []
    if seconds is not None and seconds > IMPORT_SECONDS:
        slow.append(
            Finding("import", f"importing it takes {seconds:.1f} s, and every command that uses it waits: import lazily.")
        )
    return Checked(name=info.name, findings=(*findings, *slow, *report.findings), import_seconds=seconds)


def _probe(order: Order) -> Report:
    with tempfile.TemporaryDirectory(prefix="dynamo-check-") as folder:
        order_path, result_path = Path(folder, "order"), Path(folder, "result")
        order_path.write_bytes(msgspec.json.encode(order))
        command = [sys.executable, "-m", "dynamo_core.plugins.probe", str(order_path), str(result_path)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT, check=False)  # noqa: S603  # ourselves
        except subprocess.TimeoutExpired:
            return Report((Finding("import", f"importing it takes more than {_TIMEOUT:.0f} s."),))
        if not result_path.exists():
            last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
            return Report((Finding("import", f"importing it ends the process: {last}"),))
        report = msgspec.json.decode(result_path.read_bytes(), type=Report)
        if done.stdout:
            line = done.stdout.strip().splitlines()[0] if done.stdout.strip() else ""
            printed = Finding("import", f"importing it prints ({line!r}): use logging, in a function.")
            report = msgspec.structs.replace(report, findings=(*report.findings, printed))
        return report
