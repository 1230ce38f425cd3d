from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from dynamo_core.http.series_reference import series_markdown, with_series

DOCUMENT = Path(__file__).parents[2] / "docs" / "metrics.md"


@pytest.mark.skipif(sys.platform != "linux", reason="process_* series are told on Linux only")
def test_the_page_has_the_table_of_today_s_series() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    assert text == with_series(text), "run: python -m dynamo_core.http.series_reference docs/metrics.md"


def test_every_series_is_named_after_the_prefix_or_what_it_belongs_to_and_says_what_it_means() -> None:
    rows = [[cell.strip() for cell in row.strip("|").split(" | ")] for row in series_markdown().splitlines()[2:]]
    names = [re.sub(r"`", "", cells[0]) for cells in rows]
    assert len(names) == len(set(names)) > 30
    assert all(name.startswith(("dynamo_frontend_", "dynamo_component_router_", "process_")) for name in names)
    assert all(cells[1] in ("counter", "gauge", "histogram") and cells[3].endswith(".") for cells in rows)
