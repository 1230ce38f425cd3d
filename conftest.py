"""What the tests of all packages share."""

from __future__ import annotations

import importlib.util
import os
import platform
import sys
from collections.abc import Iterator
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest

from dynamo_core.testing.tiny_model import make_tiny_model

ROOT = Path(__file__).parent


def _origin(module: str) -> str | None:
    try:
        found = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        return None
    return None if found is None else found.origin


def _compiled() -> Iterator[tuple[Path, Path]]:
    """The compiled modules in use that were built in this checkout, each with its source."""
    for package in (ROOT / "dynamo_core", ROOT / "plugins/kv-router/src"):
        for suffix in EXTENSION_SUFFIXES:
            for built in package.rglob(f"*{suffix}"):
                stem = built.name.removesuffix(suffix)
                yield from ((built, source) for kind in (".c", ".py") if (source := built.with_name(stem + kind)).exists())


def pytest_configure() -> None:
    stale = [str(source) for built, source in _compiled() if source.stat().st_mtime > built.stat().st_mtime]
    if stale:
        pytest.exit(f"compiled before it was changed: {', '.join(stale)}; run make install", returncode=4)


def pytest_report_header() -> str:
    names = ("dynamo_core.kv._block_map", "dynamo_core.kv._hashes", "dynamo_core.serving._word_cache", "dynamo_kv_router.router")
    origins = [origin for name in names if (origin := _origin(name)) is not None]
    return f"compiled: {', '.join(origin for origin in origins if not origin.endswith('.py')) or 'nothing'}"


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder of a few layers with random weights, a tokenizer trained on the spot and a chat template."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    make_tiny_model(folder)
    return folder


@pytest.fixture(scope="session")
def large_pages() -> None:
    """Skips where the kernel is too old to be asked for them, or its owner does not want them."""
    enabled = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if sys.platform != "linux" or [int(part) for part in platform.release().split(".")[:2]] < [6, 1]:
        pytest.skip("memory is moved to large pages from Linux 6.1 on")
    if not enabled.exists() or "[never]" in enabled.read_text():
        pytest.skip("large pages are switched off on this machine")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Tests marked `vllm` are skipped where it is not installed; under CI that is a failure."""
    if item.get_closest_marker("vllm") is not None and importlib.util.find_spec("vllm") is None:
        if os.environ.get("CI"):
            pytest.fail("vLLM is not installed: the tests against a real engine cannot run")
        pytest.skip("vLLM is not installed")
