"""Compiles with mypyc the modules that every request runs through; where there is no compiler they are Python, and do the same.

Which ones, ``[tool.hatch.build.targets.wheel.hooks.custom]`` says. They are Python all the same: without the ``.so`` files, that
is what runs.
"""

from __future__ import annotations

import os
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

_PACKAGE = "dynamo_kv_router"
_SETTINGS = """
[mypy]
mypy_path = {path}
explicit_package_bases = true
namespace_packages = true
ignore_missing_imports = true
follow_imports = silent
cache_dir = {cache}
"""


class Compiled(BuildHookInterface):
    """For wheels; an editable installation has the compiled modules beside their sources."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        source = Path(self.root, "src")
        for stale in _built(source):
            stale.unlink()
        try:
            with tempfile.TemporaryDirectory() as folder:
                _compile(source, [source / _PACKAGE / f"{name}.py" for name in self.config["modules"]], Path(folder))
        except (Exception, SystemExit) as error:  # noqa: BLE001 - mypyc ends the process for errors of its own
            self.app.display_warning(f"{_PACKAGE} is not compiled, so the choice of a worker takes twice as long: {error}")
            return
        build_data["pure_python"] = False
        build_data["infer_tag"] = True
        if version != "editable":
            build_data["force_include"].update({str(path): str(path.relative_to(source)) for path in _built(source)})


def _built(source: Path) -> Iterator[Path]:
    """What this interpreter would load."""
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    yield from [*source.glob(f"*{suffix}"), *source.glob(f"{_PACKAGE}/*{suffix}")]


def _compile(source: Path, modules: list[Path], folder: Path) -> None:
    from mypyc.build import mypycify
    from setuptools import Distribution
    from setuptools.command.build_ext import build_ext

    path = [source]
    core = source.parents[2]
    if (core / "dynamo_core").is_dir():  # in a checkout: types that are known make for faster code
        path.append(core)
    settings = folder / "mypy.ini"
    settings.write_text(_SETTINGS.format(path=os.pathsep.join(map(str, path)), cache=folder / "cache"))
    extensions = mypycify(
        [f"--config-file={settings}", *map(str, modules)], opt_level="3", group_name=_PACKAGE, target_dir=str(folder)
    )
    command = build_ext(Distribution({"name": _PACKAGE, "ext_modules": extensions}))
    command.build_lib, command.build_temp = str(folder / "lib"), str(folder / "temp")
    command.ensure_finalized()
    command.run()
    for extension in extensions:
        built = Path(command.get_ext_fullpath(extension.name))
        target = source / built.relative_to(folder / "lib")
        target.write_bytes(built.read_bytes())
        target.chmod(0o755)
