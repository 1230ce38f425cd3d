"""docs/examples.md and the examples themselves: small, complete, and nothing that `dynamo plugins check` finds."""

import re
from pathlib import Path

import pytest

from dynamo_core.plugins.check import check_plugin

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted(manifest.parent for manifest in (ROOT / "examples").glob("*/pyproject.toml"))


def test_every_example_has_a_paragraph() -> None:
    page = (ROOT / "docs" / "examples.md").read_text()
    described = re.findall(r"^\*\*`(\w+)`\*\*", page, re.MULTILINE)
    assert sorted(described) == [example.name for example in EXAMPLES]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)
def test_an_example_is_one_small_module_with_tests_and_without_findings(example: Path) -> None:
    (module,) = example.glob("*.py")
    assert len(module.read_text().splitlines()) < 60
    assert list((example / "tests").glob("test_*.py"))
    (checked,) = check_plugin(str(example))
    assert checked.findings == ()


def test_every_page_is_linked() -> None:
    docs = ROOT / "docs"
    linked = re.search(r"```\{toctree\}\n(.*?)```", (docs / "index.md").read_text(), re.DOTALL)
    assert linked is not None
    assert {*linked[1].split()} == {page.stem for page in docs.glob("*.md")} - {"index"}
