"""Compiles with mypyc the modules that every request runs through; where there is no compiler they are Python, and do the same.

Which ones, ``[tool.hatch.build.targets.wheel.hooks.custom]`` says. They are Python all the same: without the ``.so`` files, that
is what runs. What is imported from other packages counts as of unknown type, so that nothing of theirs is compiled in.
"""

from __future__ import annotations

import shutil
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

_PACKAGE = "dynamo_kv_router"
_SETTINGS = """
[mypy]
mypy_path = {path}
explicit_package_bases = true
namespace_packages = true
no_site_packages = true
ignore_missing_imports = true
follow_imports = silent
cache_dir = {cache}
"""


class Compiled(BuildHookInterface):
    """An editable installation has the compiled modules beside their sources; a wheel is built without touching the checkout."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        self._folder = tempfile.TemporaryDirectory()
        source, folder = Path(self.root, "src"), Path(self._folder.name)
        try:
            built = _compile(source, [source / _PACKAGE / f"{name}.py" for name in self.config["modules"]], folder)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - mypyc ends the process for errors of its own
            self.app.display_warning(f"{_PACKAGE} is not compiled, so the choice of a worker takes twice as long: {error}")
            built = []
        beside = {path: path.relative_to(folder / "lib") for path in built}
        if version == "editable":
            suffix = sysconfig.get_config_var("EXT_SUFFIX")
            for stale in {*source.glob(f"*{suffix}"), *source.glob(f"*/*{suffix}")} - {source / path for path in beside.values()}:
                stale.unlink()
            for path, place in beside.items():
                aside = (source / place).with_suffix(".new")
                shutil.copyfile(path, aside)
                aside.replace(source / place)  # in one step: a process may have loaded what is there
        elif built:
            build_data["force_include"].update({str(path): str(place) for path, place in beside.items()})
            build_data["pure_python"] = False
            build_data["infer_tag"] = True

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:  # noqa: ARG002
        self._folder.cleanup()


def _compile(source: Path, modules: list[Path], folder: Path) -> list[Path]:
    from mypyc.build import mypycify
    from setuptools import Distribution
    from setuptools.command.build_ext import build_ext

    settings = folder / "mypy.ini"
    settings.write_text(_SETTINGS.format(path=source, cache=folder / "cache"))
    extensions = mypycify(
        [f"--config-file={settings}", *map(str, modules)], opt_level="3", group_name=_PACKAGE, target_dir=str(folder)
    )
    command = build_ext(Distribution({"name": _PACKAGE, "ext_modules": extensions}))
    command.build_lib, command.build_temp = str(folder / "lib"), str(folder / "temp")
    command.ensure_finalized()
    command.run()
    return [Path(command.get_ext_fullpath(extension.name)) for extension in extensions]
