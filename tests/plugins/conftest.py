"""Plugins as pip leaves them: a module and a ``.dist-info`` folder with metadata, in a folder on ``sys.path``."""

import itertools
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import pytest

from dynamo_core.contracts.gate import HttpRequestInfo, RequestSummary


class Install(Protocol):
    def __call__(
        self, name: str, code: str, *, distribution: str = "", version: str = "1.0", attribute: str = "", module: str = ""
    ) -> str: ...


def write_distribution(site: Path, name: str, code: str, *, module: str, distribution: str, version: str, attribute: str) -> None:
    site.mkdir(exist_ok=True)
    header = (
        "import msgspec\nfrom dynamo_core import hookimpl\nfrom dynamo_core.contracts import *\nfrom dynamo_core.specs import *\n"
    )
    (site / f"{module}.py").write_text(header + textwrap.dedent(code))
    info = site / f"{distribution.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
    target = f"{module}:{attribute}" if attribute else module
    (info / "entry_points.txt").write_text(f"[dynamo.plugins]\n{name} = {target}\n")


@pytest.fixture
def site(tmp_path: Path) -> Path:
    return tmp_path / "site-packages"


@pytest.fixture
def install(site: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Install a plugin of this source, which needs no imports of its own; returns its module's name."""
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))
    numbers = itertools.count()
    modules: list[str] = []

    def install(
        name: str, code: str, *, distribution: str = "", version: str = "1.0", attribute: str = "", module: str = ""
    ) -> str:
        module = module or f"plugin_under_test_{next(numbers)}"
        modules.append(module)
        write_distribution(
            site, name, code, module=module, distribution=distribution or f"{name}-plugin", version=version, attribute=attribute
        )
        return module

    yield install
    for module in modules:
        sys.modules.pop(module, None)


@pytest.fixture
def request_info() -> HttpRequestInfo:
    return HttpRequestInfo(id="r1", method="POST", path="/v1/chat/completions", headers={"x-user": "ann"}, client="127.0.0.1")


@pytest.fixture
def summary() -> RequestSummary:
    return RequestSummary(id="r1", model="m", endpoint="chat", principal=None, status=200, outcome="completed")
