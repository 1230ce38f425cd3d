"""Tables in Markdown from the raw numbers: medians of the rounds with their spread, and ratios of the medians."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Sequence

from benchmarks.peers.cases import CASES, Case, Column
from benchmarks.peers.results import Measurement, Results, RunInfo
from benchmarks.peers.servers import OURS, PROXIES

__all__ = ["Figures", "report", "worse"]

_NOISE = 1.05
"""A ratio within it of 1 is a draw."""
_PROXIES_DO_LESS = """\
A proxy passes bytes on: templates, tokenizing, KV routing, detokenizing and usage are the work of the servers behind it, and what
that costs is not in its own CPU time; rates and times are those of the whole chain. With this in mind:"""


class Figures:
    """The measurements of a run, by case and server."""

    def __init__(self, measurements: Iterable[Measurement]) -> None:
        self._rows: dict[str, dict[str, list[dict[str, float]]]] = {}
        for made in measurements:
            self._rows.setdefault(made.case, {}).setdefault(made.server, []).append(made.values)

    def cases(self) -> list[Case]:
        """Those that were measured, in the table's order."""
        return [case for name, case in CASES.items() if name in self._rows]

    def servers(self, case: str) -> list[str]:
        return list(self._rows[case])

    def all_servers(self) -> list[str]:
        return list(dict.fromkeys(server for servers in self._rows.values() for server in servers))

    def values(self, case: str, server: str, key: str) -> list[float]:
        """One a round; empty when the server or the figure is not there."""
        return [values[key] for values in self._rows.get(case, {}).get(server, ()) if key in values]

    def median(self, case: str, server: str, key: str) -> float | None:
        values = self.values(case, server, key)
        return statistics.median(values) if values else None

    def total(self, case: str, server: str, key: str) -> int:
        return round(sum(self.values(case, server, key)))

    def ratio(self, case: str, server: str, column: Column) -> float | None:
        """Ours ÷ the server's."""
        ours, theirs = self.median(case, OURS, column.key), self.median(case, server, column.key)
        return ours / theirs if ours is not None and theirs else None


def report(results: Results) -> str:
    """Everything below the page's own text."""
    figures = Figures(results.measurements)
    parts = [
        *_about(results),
        "## Ratios",
        "",
        *_summary(figures),
        "",
        "## Where a peer is better",
        "",
        *_worse_lines(figures),
        "",
    ]
    parts += ["## All figures", ""]
    for case in figures.cases():
        parts += [f"### {case.title}", "", *_table(figures, case), ""]
    return "\n".join(parts)


def worse(figures: Figures) -> Iterator[tuple[Case, Column, str, float]]:
    """Every figure at which a peer does better than we do, by more than noise."""
    for case in figures.cases():
        for column in case.columns:
            for server in figures.servers(case.name):
                ratio = figures.ratio(case.name, server, column)
                if server != OURS and ratio and column.compared and (1 / ratio if column.higher_is_better else ratio) > _NOISE:
                    yield case, column, server, ratio


def _about(results: Results) -> list[str]:
    machine = results.machine
    versions = ", ".join(f"{name} {number}" for name, number in results.versions.items())
    return [
        *(f"    {run.command}" for run in results.runs),
        "",
        f"- {machine.cores} cores ({machine.processor}), {machine.memory_gib:g} GiB, {machine.system}",
        f"- {versions}",
        *(f"- {_about_run(run)}" for run in results.runs),
        *(f"- left out: {why}" for why in results.left_out.values()),
        "",
    ]


def _about_run(run: RunInfo) -> str:
    rounds = f"{run.rounds} round{'s' * (run.rounds > 1)} of {run.seconds:g} s"
    commit = f", commit {run.commit}" if run.commit else ""
    return f"{run.date}{commit}: {rounds}, model folder `{run.model}`, load average before it {run.load:g}"


def _summary(figures: Figures) -> list[str]:
    peers = [server for server in figures.all_servers() if server != OURS]
    lines = [f"| case | figure | {OURS} | " + " | ".join(f"÷ {peer}" for peer in peers) + " |", "|---" * (3 + len(peers)) + "|"]
    for case in figures.cases():
        for column in _headline(case):
            ours = figures.median(case.name, OURS, column.key)
            cells = (figures.ratio(case.name, peer, column) for peer in peers)
            told = " | ".join("" if ratio is None else f"{ratio:.2f}" for ratio in cells)
            if ours is not None and told.strip(" |"):
                lines.append(f"| {case.name} | {column.heading} | {ours:,.{column.digits}f} | {told} |")
    return lines


def _headline(case: Case) -> Sequence[Column]:
    return (case.columns[0], *(column for column in case.columns[1:] if column.headline))


def _table(figures: Figures, case: Case) -> list[str]:
    columns = [c for c in case.columns if any(figures.values(case.name, s, c.key) for s in figures.servers(case.name))]
    lines = [
        "| server | " + " | ".join(column.heading for column in columns) + " | completed | failed |",
        "|---" * (len(columns) + 3) + "|",
    ]
    for server in figures.servers(case.name):
        cells = (_cell(figures.values(case.name, server, column.key), column) for column in columns)
        name = f"**{server}**" if server == OURS else server
        done, failed = (figures.total(case.name, server, key) for key in ("completed", "failed"))
        lines.append(f"| {name} | " + " | ".join(cells) + f" | {done:,} | {failed:,} |")
    return lines


def _cell(values: Sequence[float], column: Column) -> str:
    if not values:
        return ""
    told = f"{statistics.median(values):,.{column.digits}f}"
    low, high = (f"{limit:,.{column.digits}f}" for limit in (min(values), max(values)))
    return told if low == high else f"{told} ({low}–{high})"


def _worse_lines(figures: Figures) -> list[str]:
    """Proxies apart: what their own processes cost is without the work that the servers behind them do."""
    found = list(worse(figures))
    lines = [_worse_line(*one) for one in found if one[2] not in PROXIES] or [
        "Nowhere in this run, of those that do the same work."
    ]
    proxies = [_worse_line(*one) for one in found if one[2] in PROXIES]
    if proxies:
        lines += ["", _PROXIES_DO_LESS, "", *proxies]
    return lines


def _worse_line(case: Case, column: Column, server: str, ratio: float) -> str:
    return f"- {case.title}: {column.heading} is {ratio:.2f} × {server}'s."
