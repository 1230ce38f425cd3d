import re
from pathlib import Path

import pytest

from dynamo_core.config import Settings, resolve, settings_fields
from dynamo_core.config.reference import settings_markdown, with_settings

DOCUMENT = Path(__file__).parents[2] / "docs" / "configuration.md"


def test_the_document_has_the_table_of_todays_settings() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    assert text == with_settings(text), "run: python -m dynamo_core.config.reference docs/configuration.md"


def test_the_table_has_a_row_a_setting_with_its_flag_and_environment_names() -> None:
    rows = settings_markdown().splitlines()[2:]
    assert len(rows) == len(Settings.__struct_fields__)
    for row, field in zip(rows, settings_fields().values(), strict=True):
        cells = [cell.strip() for cell in row.strip("|").split(" | ")]
        assert len(cells) == 6
        assert cells[0] == f"`{field.name}`"
        assert all(name in cells[2] for name in field.env)
        assert cells[5] == field.doc


def test_a_document_without_marks_is_refused() -> None:
    with pytest.raises(ValueError, match="lacks the lines"):
        with_settings("# Configuration\n")


def test_the_example_files_of_the_document_are_valid(tmp_path: Path) -> None:
    examples = re.findall(r"```toml\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    assert examples
    for example in examples:
        file = tmp_path / "dynamo.toml"
        file.write_text(example)
        resolved = resolve({}, environ={}, file=str(file))
        assert resolved.settings.plugins == ("mocker",)
        assert resolved.settings.engine_args["block_size"] == 16
