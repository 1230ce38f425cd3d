"""Compiles the parts in C when the package is built; without a compiler it is built without them, and does all the same."""

from __future__ import annotations

import logging
import shutil
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from setuptools import Distribution, Extension
from setuptools.command.build_ext import build_ext

_MODULES = ("dynamo_core.kv._block_map", "dynamo_core.kv._hashes", "dynamo_core.serving._word_cache")
_SUFFIX = ".abi3.so"


class NativeParts(BuildHookInterface):
    """An editable installation has the compiled modules beside their sources; a wheel is built without touching the checkout."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        self._folder = tempfile.TemporaryDirectory()
        beside = {module: Path(*module.split(".")).with_suffix(_SUFFIX) for module in _MODULES}
        try:
            built = _compile(Path(self.root), Path(self._folder.name))
        except Exception as error:  # noqa: BLE001 - setuptools' and distutils' errors have no base of their own
            self.app.display_warning(f"built without {', '.join(_MODULES)}, so requests take longer: {error}")
            built = {}
        if version == "editable":
            for module, path in beside.items():
                _put(built.get(module), Path(self.root, path))
        elif built:
            build_data["force_include"].update({str(path): str(beside[module]) for module, path in built.items()})
            build_data["pure_python"] = False
            build_data["tag"] = f"cp311-abi3-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:  # noqa: ARG002
        self._folder.cleanup()


def _put(built: Path | None, target: Path) -> None:
    """In one step: a process may have loaded what is there."""
    if built is None:
        target.unlink(missing_ok=True)
    else:
        aside = target.with_suffix(".new")
        shutil.copyfile(built, aside)
        aside.replace(target)


def _compile(root: Path, folder: Path) -> dict[str, Path]:
    extensions = [
        Extension(
            module, [str(Path(root, *module.split(".")).with_suffix(".c"))], py_limited_api=True, extra_compile_args=["-O3"]
        )
        for module in _MODULES
    ]
    command = build_ext(Distribution({"name": "dynamo-core", "ext_modules": extensions}))
    command.build_lib = command.build_temp = str(folder)
    logging.getLogger().setLevel(logging.WARNING)
    command.ensure_finalized()
    command.run()
    return {module: Path(command.get_ext_fullpath(module)) for module in _MODULES}
