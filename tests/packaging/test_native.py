"""Wheels have their compiled parts where there is a compiler, and are for any platform where there is none."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = ("pyproject.toml", "hatch_build.py", "README.md", "LICENSE", "CHANGELOG.md")
MODULES = ("dynamo_core/kv/_block_map", "dynamo_core/kv/_hashes", "dynamo_core/serving/_word_cache")
COMPILER = (os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc").split()[0]
NOT_BUILT = shutil.ignore_patterns("*.so", "__pycache__")
HEADER = Path(sysconfig.get_path("include")) / "Python.h"


def environment(**changed: str) -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | changed


def build(folder: Path, **environ: str) -> tuple[Path, str]:
    """The core's wheel and what was said, from a copy: building compiles beside the source."""
    source = folder / "source"
    shutil.copytree(ROOT / "dynamo_core", source / "dynamo_core", ignore=NOT_BUILT)
    for name in FILES:
        shutil.copy(ROOT / name, source)
    return build_wheel(source, folder, **environ)


def build_router(folder: Path, **environ: str) -> tuple[Path, str]:
    """As :func:`build`, of ``kv-router``, without the core beside it."""
    source = shutil.copytree(ROOT / "plugins/kv-router", folder / "source", ignore=NOT_BUILT)
    return build_wheel(source, folder, **environ)


def build_wheel(source: Path, folder: Path, **environ: str) -> tuple[Path, str]:
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(source)]
    done = subprocess.run(
        command, env=environment(**environ), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
    (wheel,) = folder.glob("*.whl")
    return wheel, done.stdout


compiling = pytest.mark.skipif(not (shutil.which(COMPILER) and HEADER.is_file()), reason=f"needs {COMPILER} and {HEADER}")


@compiling
def test_a_wheel_has_the_compiled_part_for_every_python_from_3_11(tmp_path: Path) -> None:
    wheel, said = build(tmp_path)
    platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
    assert wheel.name.endswith(f"-cp311-abi3-{platform}.whl"), said
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path / "installed")
    assert {f"{module}{suffix}" for module in MODULES for suffix in (".abi3.so", ".c", ".pyi")} <= set(names)
    assert sorted(name for name in names if name.endswith(".so")) == [f"{module}.abi3.so" for module in MODULES]
    program = (
        f"import sys; sys.path.insert(0, {str(tmp_path / 'installed')!r}); from dynamo_core.serving import _word_cache as it;"
        "from dynamo_core.kv._block_map import BlockMap; blocks = BlockMap(5);"
        "cache = it.WordCache(lambda texts: [bytes(4 * len(text)) for text in texts], 'a', 1, b'x', bytes(1), False, 64);"
        "print(it.__file__, len(cache.encode('x x')), blocks.add(1, [5, 6]))"
    )
    shown = subprocess.run([sys.executable, "-c", program], env=environment(), capture_output=True, text=True, check=True).stdout
    assert shown.split() == [str(tmp_path / "installed" / f"{MODULES[2]}.abi3.so"), "12", "2"]


def test_without_a_compiler_the_wheel_is_for_any_platform_and_says_so(tmp_path: Path) -> None:
    wheel, said = build(tmp_path, CC="/bin/false")
    assert wheel.name.endswith("-py3-none-any.whl")
    assert f"built without {', '.join(MODULES).replace('/', '.')}, so requests take longer" in said
    with zipfile.ZipFile(wheel) as archive:
        assert not [name for name in archive.namelist() if name.endswith(".so")]
        assert {f"{module}.c" for module in MODULES} <= set(archive.namelist())


@compiling
@pytest.mark.slow
def test_kv_routers_wheel_has_its_modules_compiled_and_in_python(tmp_path: Path) -> None:
    wheel, said = build_router(tmp_path)
    platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}"
    assert wheel.name.endswith(f"-{tag}-{tag}-{platform}.whl"), said
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path / "installed")
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    assert {"dynamo_kv_router/router.py", f"dynamo_kv_router/router{suffix}", f"dynamo_kv_router__mypyc{suffix}"} <= set(names)
    program = (
        f"import sys; sys.path.insert(0, {str(tmp_path / 'installed')!r}); import dynamo_kv_router.speed as it;"
        "speed = it.PrefillSpeed(); print(it.__file__)"
    )
    shown = subprocess.run([sys.executable, "-c", program], env=environment(), capture_output=True, text=True, check=True).stdout
    assert shown.strip() == str(tmp_path / "installed" / f"dynamo_kv_router/speed{suffix}")


def test_without_a_compiler_kv_router_is_python(tmp_path: Path) -> None:
    wheel, said = build_router(tmp_path, CC="/bin/false")
    assert wheel.name.endswith("-py3-none-any.whl")
    assert "dynamo_kv_router is not compiled, so the choice of a worker takes twice as long" in said
    with zipfile.ZipFile(wheel) as archive:
        assert not [name for name in archive.namelist() if name.endswith(".so")]
