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

_MODULE = "dynamo_core.serving._word_cache"
_SUFFIX = ".abi3.so"


class NativeParts(BuildHookInterface):
    """For wheels; an editable installation has the compiled module beside its source."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002
        folder = Path(self.root, *_MODULE.split(".")[:-1])
        built = folder / f"{_MODULE.rpartition('.')[2]}{_SUFFIX}"
        built.unlink(missing_ok=True)
        try:
            _compile(folder / "_word_cache.c", built)
        except Exception as error:  # noqa: BLE001 - setuptools' and distutils' errors have no base of their own
            self.app.display_warning(f"built without {_MODULE}, so some prompts take longer to encode: {error}")
            return
        platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["pure_python"] = False
        build_data["tag"] = f"cp311-abi3-{platform}"
        build_data["artifacts"].append(f"*{_SUFFIX}")


def _compile(source: Path, target: Path) -> None:
    extension = Extension(_MODULE, [str(source)], py_limited_api=True, extra_compile_args=["-O3"])
    with tempfile.TemporaryDirectory() as folder:
        command = build_ext(Distribution({"name": "dynamo-core", "ext_modules": [extension]}))
        command.build_lib = command.build_temp = folder
        logging.getLogger().setLevel(logging.WARNING)
        command.ensure_finalized()
        command.run()
        target.write_bytes(Path(command.get_ext_fullpath(_MODULE)).read_bytes())
        target.chmod(0o755)
