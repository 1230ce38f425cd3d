"""The page with the figures: what stands between the two marks is written from a result file, the rest by hand."""

from __future__ import annotations

from pathlib import Path

from benchmarks.peers.plots import plot, plots
from benchmarks.peers.report import Figures, report
from benchmarks.peers.results import Results

__all__ = ["BEGIN", "END", "PAGE", "RESULTS", "filled", "write"]

PAGE = Path(__file__).parents[2] / "docs" / "performance.md"
RESULTS = PAGE.with_suffix("") / "results.json"
BEGIN = "<!-- generated: python -m benchmarks page RESULTS.json -->\n"
END = "<!-- end of what is generated -->\n"


def filled(page: str, results: Results) -> str:
    """The page with the figures of these results."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    pictures = [f"![{one.label}](performance/{one.name}.svg)\n" for one in plots(Figures(results.measurements))]
    return "\n".join((before + BEGIN, report(results), *pictures, END + after))


def write(*sources: Path) -> list[Path]:
    """Write page, plots and the page's copy of the results; returns the files."""
    results = Results.read(*sources)
    results.write(RESULTS)
    PAGE.write_text(filled(PAGE.read_text(), results))
    return [PAGE, RESULTS, *plot(results, RESULTS.parent)]
