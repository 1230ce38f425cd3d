"""A picture of several runs: how long first tokens took, and how many requests each worker had over time. Needs matplotlib."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dynamo_core.errors import StartupError
from dynamo_core.simulator.simulation import RequestLog, Simulated

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["check_plot", "load_over_time", "save_plot"]

_BINS = 240
_FORMATS = (".png", ".svg")


def check_plot(path: str) -> None:
    """Raises :class:`~dynamo_core.errors.StartupError` if :func:`save_plot` could not do its work."""
    file = Path(path)
    if file.suffix.lower() not in _FORMATS:
        raise StartupError(f"--plot {path} is neither PNG nor SVG: end the name in .png or .svg.")
    if not file.absolute().parent.is_dir():
        raise StartupError(f"--plot {path}: the folder {file.absolute().parent} does not exist; make it first.")
    if importlib.util.find_spec("matplotlib") is None:
        raise StartupError("--plot needs matplotlib, which is not installed: pip install 'dynamo-core[plot]'.")


def save_plot(path: str, runs: Sequence[tuple[str, Simulated]]) -> None:
    """``runs``: a title and what happened. PNG or SVG by the name's ending."""
    from matplotlib.figure import Figure

    rows = 1 + (len(runs) + 1) // 2
    figure = Figure(figsize=(12, 3.2 * rows), layout="constrained")
    grid = figure.add_gridspec(rows, 2)
    _draw_ttft(figure.add_subplot(grid[0, :]), runs)
    first: Axes | None = None
    for i, (title, simulated) in enumerate(runs):
        axes = figure.add_subplot(grid[1 + i // 2, i % 2], sharey=first)
        _draw_load(axes, title, simulated)
        first = first or axes
    try:
        figure.savefig(path, dpi=120)
    except OSError as error:
        raise StartupError(f"--plot {path} cannot be written ({error.strerror}); choose another place.") from error


def load_over_time(requests: Sequence[RequestLog], worker_id: int, end_ms: float, bins: int = _BINS) -> list[float]:
    """Mean number of requests that the worker had in each of ``bins`` equal parts of the time until ``end_ms``."""
    width = end_ms / bins
    load = [0.0] * bins
    for log in requests:
        if log.worker_id != worker_id or log.end_ms < 0 or not width:
            continue
        first, last = min(bins - 1, int(log.routed_ms / width)), min(bins - 1, int(log.end_ms / width))
        for i in range(first, last + 1):
            load[i] += (min(log.end_ms, (i + 1) * width) - max(log.routed_ms, i * width)) / width
    return load


def _draw_ttft(axes: Axes, runs: Sequence[tuple[str, Simulated]]) -> None:
    for title, simulated in runs:
        values = sorted(log.first_ms - log.at_ms for log in simulated.requests if log.first_ms >= 0)
        axes.plot(values, [(i + 1) / len(values) for i in range(len(values))], label=title, linewidth=1.2)
    axes.set(xscale="log", xlabel="time to first token, ms", ylabel="share of requests", ylim=(0, 1))
    axes.grid(visible=True, alpha=0.3)
    axes.legend(loc="lower right", fontsize="small")


def _draw_load(axes: Axes, title: str, simulated: Simulated) -> None:
    minutes = [(i + 0.5) * simulated.end_ms / 60_000 / _BINS for i in range(_BINS)]
    for worker in simulated.workers:
        axes.plot(minutes, load_over_time(simulated.requests, worker.id, simulated.end_ms), linewidth=0.7)
    axes.set(title=title, xlabel="minutes", ylabel="requests, a line a worker")
    axes.grid(visible=True, alpha=0.3)
