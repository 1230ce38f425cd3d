"""``dynamo simulate``."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from dynamo_core.cli.options import config_option, setting_options
from dynamo_core.cli.plugin_options import PluginCommand
from dynamo_core.cli.table import table
from dynamo_core.errors import PluginError, StartupError

if TYPE_CHECKING:
    from dynamo_core.plugins import Provider
    from dynamo_core.simulator import Change, Cluster, Distribution, MakeRouter, Progress, Report, Simulated, Sla, Trace

__all__ = ["command"]

_COUNT = click.IntRange(min=1)
_POSITIVE = click.FloatRange(min=0, min_open=True)
_NOT_NEGATIVE = click.FloatRange(min=0)
_CHANGE: Any = (_NOT_NEGATIVE, int)
_HEAD = ("ROUTER", "LOAD", "COMPLETED", "HIT RATE", "TTFT ms", "TPOT ms", "E2E ms", "BUSIEST")


class _Options(msgspec.Struct, frozen=True, kw_only=True):
    """What is the same for all runs of one command."""

    trace: Trace
    cluster: Cluster
    spread_ms: float
    seed: int
    sla: Sla | None


@click.command("simulate", cls=PluginCommand)
@click.argument("trace", metavar="TRACE")
@click.option("--router", "routers", multiple=True, metavar="NAME", help="Router to try; repeatable.  [default: as dynamo serve]")
@click.option(
    "--speedup", "speedups", multiple=True, type=_POSITIVE, metavar="X", help="Requests come X times as fast; repeatable."
)
@click.option("--workers", type=_COUNT, default=8, show_default=True, metavar="N", help="Workers.")
@click.option("--blocks", type=_COUNT, default=2048, show_default=True, metavar="N", help="KV blocks of each worker.")
@click.option("--block-size", type=_COUNT, default=512, show_default=True, metavar="N", help="Tokens a KV block.")
@click.option(
    "--trace-block-size", type=_COUNT, metavar="N", help="Tokens a hash id of the trace.  [default: as the trace says, or 512]"
)
@click.option("--requests", type=_COUNT, metavar="N", help="Only the first N of the trace.")
@click.option(
    "--spread-ms", type=_NOT_NEGATIVE, default=0.0, metavar="MS", help="Scatter requests of one timestamp over so long."
)
@click.option("--kv-event-delay-ms", type=_NOT_NEGATIVE, default=0.0, metavar="MS", help="KV events reach the router so late.")
@click.option("--at", "changes", type=_CHANGE, multiple=True, metavar="SECONDS ±N", help="N workers join or leave; repeatable.")
@click.option("--sla-ttft-ms", type=_POSITIVE, metavar="MS", help="Count requests whose first token came in time.")
@click.option("--sla-itl-ms", type=_POSITIVE, metavar="MS", help="Count requests whose mean time between tokens was in bounds.")
@click.option("--seed", type=int, default=0, show_default=True, metavar="N", help="Of --spread-ms and of routers that draw lots.")
@click.option("--json", "json_file", metavar="FILE", help="Write all figures as JSON; - prints them in place of the table.")
@click.option("--plot", "plot_file", metavar="FILE", help="Draw TTFT and load per worker over time; PNG or SVG.")
@setting_options("simulate", only=("plugins", "no_plugins"))
@config_option
def command(
    trace: str,
    routers: tuple[str, ...],
    speedups: tuple[float, ...],
    json_file: str | None,
    plot_file: str | None,
    **rest: Any,
) -> None:
    """Replay a trace through routers and simulated workers, in virtual time.

    TRACE is a file in Mooncake's format: a JSON object a line with timestamp (ms), input_length, output_length and hash_ids. The
    routers are the real ones; engines, their KV caches and the time they take are those of the mocker. Each router runs at each
    speed-up.
    """
    from dynamo_core.simulator import report
    from dynamo_core.simulator.plot import check_plot, save_plot

    if plot_file is not None:
        check_plot(plot_file)
    if json_file not in (None, "-") and not Path(str(json_file)).absolute().parent.is_dir():
        raise StartupError(f"--json {json_file}: its folder does not exist; make it first.")
    providers = _routers(routers, rest)
    options = _options(trace, rest)
    reports: list[Report] = []
    drawn: list[tuple[str, Simulated]] = []
    for provider in providers:
        for speedup in speedups or (1.0,):
            name = provider.spec.name
            simulated = _run(provider, speedup, options)
            reports.append(
                report(simulated, options.cluster, router=name, speedup=speedup, spread_ms=options.spread_ms, sla=options.sla)
            )
            drawn.append((f"{name}, ×{speedup:g}", simulated))
            click.echo(_remark(reports[-1]), err=True)
    _write(reports, json_file)
    if plot_file is not None:
        save_plot(plot_file, drawn)


def _routers(names: Sequence[str], flags: dict[str, Any]) -> list[Provider]:
    """The routers asked for, or else the one that ``dynamo serve`` would take."""
    from dynamo_core.config import choose_router, resolve
    from dynamo_core.config.selection import DEFAULT_ROUTER
    from dynamo_core.plugins import activate, installed_plugins
    from dynamo_core.plugins.names import canonical_name

    given = {name: value for name, value in flags.items() if name in ("plugins", "no_plugins") or name.startswith("plugins.")}
    resolved = resolve(given, file=flags["config"], process="serve", plugins=[canonical_name(name) for name in names])
    settings = resolved.settings
    wanted = names or ((settings.router,) if settings.router else ())
    installed = installed_plugins(blocked=settings.no_plugins)
    canonical = [name if name in installed else canonical_name(name) for name in (*wanted, DEFAULT_ROUTER)]
    compiled = activate(
        list(dict.fromkeys((*(name for name in canonical if name in installed), *settings.plugins))),
        blocked=settings.no_plugins,
        tables=resolved.plugin_tables,
        source=resolved.file or "dynamo.toml",
        process="serve",
    )
    chosen = [compiled.router(name) for name in wanted] or [compiled.router(choose_router(settings, compiled))]
    return list({provider.spec.name: provider for provider in chosen}.values())


def _options(trace: str, flags: dict[str, Any]) -> _Options:
    from dynamo_core.simulator import Cluster, Sla, read_trace

    ttft, itl = flags["sla_ttft_ms"], flags["sla_itl_ms"]
    return _Options(
        trace=read_trace(trace, block_size=flags["trace_block_size"], limit=flags["requests"]),
        cluster=Cluster(
            workers=flags["workers"],
            blocks=flags["blocks"],
            block_size=flags["block_size"],
            kv_event_delay_ms=flags["kv_event_delay_ms"],
            changes=_changes(flags["workers"], flags["changes"]),
        ),
        spread_ms=flags["spread_ms"],
        seed=flags["seed"],
        sla=None if ttft is None and itl is None else Sla(ttft_ms=ttft, itl_ms=itl),
    )


def _changes(workers: int, given: Sequence[tuple[float, int]]) -> tuple[Change, ...]:
    from dynamo_core.simulator import Change

    changes = tuple(Change(seconds * 1000, count) for seconds, count in sorted(given, key=lambda change: change[0]))
    for change in changes:
        workers += change.workers
        if workers < 1:
            raise StartupError(f"--at {change.at_ms / 1000:g} {change.workers:+d} leaves no worker; let fewer leave.")
    return changes


def _run(provider: Provider, speedup: float, options: _Options) -> Simulated:
    from dynamo_core.simulator import Simulation

    name = provider.spec.name
    make: MakeRouter = functools.partial(provider.spec.factory, provider.config)
    with _progress(f"{name} ×{speedup:g}", len(options.trace.requests)) as progress:
        try:
            simulation = Simulation(
                options.trace,
                options.cluster,
                make,
                speedup=speedup,
                spread_ms=options.spread_ms,
                seed=options.seed,
                progress=progress,
            )
        except Exception as error:
            raise PluginError(f"Router {name!r} of plugin {provider.plugin!r} cannot be made: {error!r}.") from error
        return simulation.run()


@contextmanager
def _progress(title: str, total: int) -> Iterator[Progress | None]:
    """A bar on a terminal, nothing elsewhere."""
    from rich.console import Console
    from rich.progress import Progress as Bar

    console = Console(stderr=True)
    if not console.is_terminal:
        yield None
        return
    with Bar(console=console, transient=True) as bar:
        task = bar.add_task(title, total=total)
        yield lambda over: bar.update(task, completed=over)


def _remark(report: Report) -> str:
    """One line a run, for those who wait."""
    text = f"{report.router} ×{report.speedup:g}: {report.completed} of {report.requests} requests in {report.wall_s:.1f} s"
    return "\n".join([text, *(f"  router {report.router} {fault}" for fault in report.faults)])


def _write(reports: Sequence[Report], json_file: str | None) -> None:
    text = msgspec.json.format(msgspec.json.encode(reports)).decode()
    if json_file == "-":
        click.echo(text)
        return
    if json_file is not None:
        try:
            Path(json_file).write_text(text + "\n")
        except OSError as error:
            raise StartupError(f"--json {json_file} cannot be written ({error.strerror}); choose another place.") from error
    goodput = reports[0].goodput is not None
    click.echo(table((*_HEAD, *(("GOODPUT",) if goodput else ())), [_row(report) for report in reports]))
    click.echo("TTFT, TPOT and E2E: mean / p50 / p90 / p99. Busiest: prompt tokens computed there ÷ the mean of all workers.")


def _row(report: Report) -> tuple[str, ...]:
    completed = f"{report.completed}/{report.requests}"
    goodput = () if report.goodput is None else (f"{report.goodput.share:.1%}, {report.goodput.requests_per_s:.2f}/s",)
    return (
        report.router,
        f"×{report.speedup:g}",
        completed,
        f"{report.hit_rate:.3f}",
        _figures(report.ttft_ms, 0),
        _figures(report.tpot_ms, 1),
        _figures(report.e2e_ms, 0),
        f"{report.balance.busiest:.2f}",
        *goodput,
    )


def _figures(values: Distribution, digits: int) -> str:
    return " / ".join(f"{value:.{digits}f}" for value in (values.mean, values.p50, values.p90, values.p99))
