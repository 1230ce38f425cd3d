"""Compiles the parts in C when the package is built; without a compiler it is built without them, and does all the same."""

from __future__ import annotations

import logging
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from setuptools import Distribution, Extension
from setuptools.command.build_ext import build_ext

_MODULES = ("dynamo_core.kv._block_map", "dynamo_core.serving._word_cache")
_SUFFIX = ".abi3.so"


class NativeParts(BuildHookInterface):
    """For wheels; an editable installation has the compiled modules beside their sources."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002
        built = {module: Path(self.root, *module.split(".")).with_suffix(_SUFFIX) for module in _MODULES}
        for path in built.values():
            path.unlink(missing_ok=True)
        try:
            _compile(built)
        except Exception as error:  # noqa: BLE001 - setuptools' and distutils' errors have no base of their own
            self.app.display_warning(f"built without {', '.join(_MODULES)}, so requests take longer: {error}")
            return
        platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["pure_python"] = False
        build_data["tag"] = f"cp311-abi3-{platform}"
        build_data["artifacts"].append(f"*{_SUFFIX}")


def _compile(targets: dict[str, Path]) -> None:
    extensions = [
        Extension(
            module,
            [str(target.with_name(f"{module.rpartition('.')[2]}.c"))],
            py_limited_api=True,
            extra_compile_args=["-O3"],
        )
        for module, target in targets.items()
    ]
    with tempfile.TemporaryDirectory() as folder:
        command = build_ext(Distribution({"name": "dynamo-core", "ext_modules": extensions}))
        command.build_lib = command.build_temp = folder
        logging.getLogger().setLevel(logging.WARNING)
        command.ensure_finalized()
        command.run()
        for module, target in targets.items():
            target.write_bytes(Path(command.get_ext_fullpath(module)).read_bytes())
            target.chmod(0o755)
