from __future__ import annotations

from pathlib import Path

import pytest

from dynamo_kv_router.reference import with_parameters

README = Path(__file__).parents[1] / "README.md"


def test_the_readme_has_every_parameter_as_it_is() -> None:
    text = README.read_text(encoding="utf-8")
    assert text == with_parameters(text), f"run: python -m dynamo_kv_router.reference {README}"


def test_a_document_without_marks_is_refused() -> None:
    with pytest.raises(ValueError, match="lacks the lines"):
        with_parameters("nothing")
