"""Plots of a run as SVG, the same bytes from the same numbers. Needs matplotlib (``pip install dynamo-core[plot]``)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.peers.report import Figures
from benchmarks.peers.results import Results

__all__ = ["Plot", "plot", "plots"]


class Plot(NamedTuple):
    name: str
    label: str
    key: str
    cases: list[str]


def plots(figures: Figures) -> list[Plot]:
    """What there are numbers for."""
    names = [case.name for case in figures.cases()]
    wanted = (
        ("token-cost", "frontend, µs CPU a streamed token", "cpu_us.frontend", "paced"),
        ("tokens-a-second", "tokens a second, whole system", "per_s", "stream"),
        ("request-cost", "frontend, µs CPU a request", "cpu_us.frontend", "unary"),
        ("jitter", "p99 jitter, ms", "jitter_p99_ms", "paced"),
    )
    found = (Plot(name, label, key, [n for n in names if n.startswith(prefix)]) for name, label, key, prefix in wanted)
    return [one for one in found if one.cases]


def plot(results: Results, folder: Path) -> list[Path]:
    """Write them; returns the files."""
    figures = Figures(results.measurements)
    folder.mkdir(parents=True, exist_ok=True)
    return [_bars(figures, folder / f"{one.name}.svg", one.label, one.key, one.cases) for one in plots(figures)]


def _bars(figures: Figures, path: Path, label: str, key: str, cases: Sequence[str]) -> Path:
    """A group of bars a case, a bar a server with its median, a whisker from the least to the greatest round."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    servers = [s for s in figures.all_servers() if any(figures.values(case, s, key) for case in cases)]
    with mpl.rc_context({"svg.hashsalt": path.stem, "svg.fonttype": "none", "font.size": 9}):
        drawing = Figure(figsize=(max(5.0, 1.1 * len(cases) + 2), 3.2), layout="constrained")
        axes: Any = drawing.subplots()
        width = 0.8 / len(servers)
        for at, server in enumerate(servers):
            medians = [figures.median(case, server, key) or 0.0 for case in cases]
            below = [m - min(figures.values(case, server, key) or [0.0]) for m, case in zip(medians, cases, strict=True)]
            above = [max(figures.values(case, server, key) or [0.0]) - m for m, case in zip(medians, cases, strict=True)]
            places = [place + (at - (len(servers) - 1) / 2) * width for place in range(len(cases))]
            axes.bar(places, medians, width * 0.9, yerr=(below, above), label=server, error_kw={"linewidth": 0.8})
        axes.set_xticks(range(len(cases)), cases, rotation=20 if len(cases) > 4 else 0)
        axes.set_ylabel(label)
        axes.set_ylim(bottom=0)
        axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
        drawing.savefig(path, format="svg", metadata={"Date": None, "Creator": None})
    return path
